"""What answers: one model and one version of a gallery, opened together, and how the next pair is opened beside it.

It knows nothing about HTTP. A Loaded never changes; the service swaps it for another in one assignment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from skumatch.backend import Backend
from skumatch.calibration import Calibration
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.gallery_seam import AnyGallery
from skumatch.match import Matcher, calibration_of
from skumatch.search import Search, search_of

FILTERS = 64  # filters whose selections are kept


@dataclass(frozen=True)
class Opened:
    """An opened model: its ``encoder``, ``calibration`` and ``search``, and what opens it in float32 for new views."""

    encoder: Encoder
    calibration: Calibration | None
    search: Search
    for_views: Callable[[], Encoder]


class ModelHome(Protocol):
    """Where models come from."""

    def version(self) -> str:
        """Return text that differs where another model would be opened."""
        ...

    def open(self) -> Opened:
        """Open the current one. Raises ModelError, ArtefactError, DeviceError or ConfigError."""
        ...


@dataclass(frozen=True)
class Store:
    """The current model of a store of bundles (or one bundle folder), to run on ``device``, ``runtime`` and
    ``precision``, see ``open_engine``."""

    folder: Path
    device: str = "auto"
    runtime: str = "auto"
    precision: str | None = None

    def version(self) -> str:
        """Return the current bundle's folder: each version has its own."""
        from skumatch.model import open_bundle

        return str(open_bundle(self.folder).folder)

    def open(self) -> Opened:
        """Open the current bundle."""
        from skumatch.encoder import open_engine

        folder = Path(self.version())
        encoder = open_engine(folder, self.device, self.runtime, self.precision)

        def for_views() -> Encoder:
            return open_engine(folder, self.device, self.runtime, "fp32")

        return Opened(encoder, calibration_of(folder), search_of(folder), for_views)


@dataclass(frozen=True)
class Untouched:
    """An encoder that was not fine-tuned, opened by ``make``; it has no versions."""

    make: Callable[[], Encoder]

    def version(self) -> str:
        """Return nothing: it stays the same."""
        return ""

    def open(self) -> Opened:
        """Open it."""
        encoder = self.make()
        return Opened(encoder, None, Search(), lambda: encoder)


class Views:
    """Opens the encoder that embeds new reference views, in float32, when first needed."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._encoder = opened.encoder if opened.encoder.spec.precision == "fp32" else None
        self._lock = threading.Lock()

    def encoder(self) -> Encoder:
        """Return the encoder. Raises ModelError or DeviceError."""
        with self._lock:
            self._encoder = self._encoder or self._opened.for_views()
            return self._encoder


@dataclass(frozen=True)
class Loaded:
    """A model, a version of a gallery, and the Matcher over both. Threads may share it."""

    matcher: Matcher
    model_version: str
    views: Views
    _filtered: dict[tuple[tuple[str, str], ...], Matcher] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def gallery(self) -> AnyGallery:
        """The version that answers."""
        return self.matcher.gallery

    @property
    def model(self) -> dict[str, Any]:
        """Name, digest and precision of the model."""
        spec = self.matcher.encoder.spec
        return {"name": spec.name, "digest": spec.digest, "precision": spec.precision}

    def known(self, where: Mapping[str, str]) -> Matcher | None:
        """Return the Matcher among the SKUs that are as ``where`` says, None where it has to be made first."""
        return self._filtered.get(_key(where)) if where else self.matcher

    def among(self, where: Mapping[str, str]) -> Matcher:
        """Return the Matcher among those SKUs, made on this thread. Raises GalleryError when no SKU is like that."""
        made = self.known(where) or self.matcher.among(where)
        with self._lock:
            if where and len(self._filtered) >= FILTERS:
                self._filtered.pop(next(iter(self._filtered)))
            if where:
                self._filtered[_key(where)] = made
        return made

    def warmed(self) -> Loaded:
        """Answer one blank picture, so that the first request finds everything ready; return self."""
        spec = self.matcher.encoder.spec
        blank = np.full((1, 3, spec.size, spec.size), 127, np.uint8)
        if len(self.gallery):
            self.matcher.answers(self.matcher.encoder.encode(blank), 1)
        return self


def _key(where: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(where.items()))


class Loader:
    """Opens the current model and the current version of the gallery; used by one thread at a time."""

    def __init__(self, models: ModelHome, home: Backend, pipeline: Pipeline) -> None:
        self.models = models
        self.home = home
        self.pipeline = pipeline

    def load(self, held: Loaded | None = None) -> Loaded:
        """Return what is current, ``held`` itself where that is it; what is open already is shared.

        Raises SpecMismatch where the gallery is of another model than the current one, and as opening does; ``held``
        goes on answering then.
        """
        version = self.models.version()
        if held is not None and version == held.model_version:
            return self.refresh(held)
        gallery = self.home.gallery()
        opened = self.models.open()
        matcher = Matcher(opened.encoder, gallery, self.pipeline, opened.calibration, opened.search)
        return Loaded(matcher, version, Views(opened)).warmed()

    def refresh(self, held: Loaded) -> Loaded:
        """Return the current version of the gallery under the model of ``held``, itself where that is it.

        Raises SpecMismatch where the gallery is of another model, GalleryError, ArtefactError.
        """
        gallery = self.home.gallery()
        if gallery.identity == held.gallery.identity:
            return held
        return Loaded(held.matcher.on(gallery), held.model_version, held.views).warmed()
