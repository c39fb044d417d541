"""Every error a user can meet, as one tree.

    SkumatchError            what happened - what to do
    |- ConfigError           skumatch.toml, a recipe or a command-line argument
    |- ImageError            one file that is not a readable image
    |- DataError             a data set: missing folder, no images, bad manifest
    |- ModelError            an encoder: unknown name, missing weights, unfit checkpoint
    |  `- HubError           weights or a tokenizer could not be fetched
    |- GalleryError          a gallery: missing, empty, unknown SKU
    |  |- SpecMismatch       a gallery built with another encoder
    |  |- LockedError        another process is writing the gallery
    |  `- ServerError        a database server that cannot be reached, is late or refuses
    |- ArtefactError         what is on disk: corrupt, half written, no space left
    `- DeviceError           a device or runtime that was asked for and is not granted

The command line prints one of these as a single line and exits with 2; anything else that surfaces is a bug.
"""

from __future__ import annotations


class SkumatchError(Exception):
    """Base of all errors meant for the user: ``what`` went wrong and, in ``todo``, what to do about it."""

    def __init__(self, what: str, todo: str = "") -> None:
        self.what = what
        self.todo = todo
        super().__init__(f"{what} - {todo}" if todo else what)


class ConfigError(SkumatchError):
    """A setting, recipe or argument that is missing, unknown or out of range."""


class ImageError(SkumatchError):
    """One file that cannot be read as an image."""


class DataError(SkumatchError):
    """A data set that cannot be read or used."""


class ModelError(SkumatchError):
    """An encoder or bundle that cannot be built or used."""


class HubError(ModelError):
    """Weights or a tokenizer that a hub did not deliver."""


class GalleryError(SkumatchError):
    """A gallery that is missing, empty or cannot do what was asked."""


class SpecMismatch(GalleryError):
    """A gallery whose vectors were made by another encoder."""


class LockedError(GalleryError):
    """A gallery that another process is writing at this moment."""


class ServerError(GalleryError):
    """A database server that keeps a gallery and cannot be reached, does not answer in time, or refuses."""


class ArtefactError(SkumatchError):
    """Something on disk that is corrupt, incomplete or could not be written."""


class DeviceError(SkumatchError):
    """A device, runtime or execution provider that was asked for and is not the one granted."""


def nearest(name: str, valid: list[str], n: int = 3) -> str:
    """Return up to ``n`` of ``valid`` that look most like ``name``, joined for a message ("" if none does)."""
    import difflib

    return ", ".join(difflib.get_close_matches(name, valid, n=n, cutoff=0.4))
