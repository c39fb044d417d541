"""What the errors of a Milvus client mean, each in one clear line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from skumatch.errors import GalleryError, ServerError
from skumatch.milvus.address import TIMEOUT, TOKEN, Address, time_limit


class Away(ServerError):
    """The server was not there; the call may be made again."""


class Late(ServerError):
    """The server took the call and did not answer in time."""


class Unloaded(ServerError):
    """The server has the collection on its disk only."""


class Unindexed(ServerError):
    """There is no such index."""


class There(ServerError):
    """There is such a collection."""


@contextlib.contextmanager
def said(address: Address) -> Iterator[None]:
    """Turn what the client raises in the block into one clear error."""
    import grpc
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        raise _meant(address, *_told(error)) from error


def _told(error: BaseException) -> tuple[str, str]:
    """Return the name of an error's code and its message; those of gRPC where pymilvus puts its own before them."""
    import grpc
    from pymilvus import MilvusException

    beneath: BaseException | None = error
    if isinstance(error, MilvusException) and re.search("fail connecting|retry timeout", str(error.message), re.I):
        beneath = error.__context__
    if isinstance(beneath, grpc.RpcError) and callable(getattr(beneath, "code", None)):
        return str(getattr(beneath.code(), "name", "")), str(beneath.details())
    if isinstance(error, MilvusException):
        return str(getattr(error.code, "name", error.code)), str(error.message)
    return "UNAVAILABLE", ""


# What an error means: its codes, or what its message has in it (patterns); the first that fits.
_MEANINGS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("full", ("RESOURCE_EXHAUSTED", "8", "9"), ("rate limit", "quota exceeded")),
    ("late", ("DEADLINE_EXCEEDED",), ("deadline exceeded", "timeout, collection", "timeout in ")),
    ("token", ("UNAUTHENTICATED",), ("unauthenticated", "auth check failure")),
    ("right", ("PERMISSION_DENIED",), ("permissiondenied", "permission deny", "permission denied")),
    ("other", ("UNIMPLEMENTED",), ("received unimplemented",)),
    ("unloaded", ("101",), ("not loaded", r"call load\(\)")),
    ("unindexed", ("700",), ("index not found", "no index to drop", "no index on field")),
    ("there", (), ("already exist",)),
    (
        "foreign",
        (),
        (
            "field not found",
            "field .* not exist",
            "output field",
            "undefined field",
            "unknown field",
            "not found in schema",
        ),
    ),
    ("away", ("UNAVAILABLE", "CANCELLED", "2"), ("fail connecting", "unavailable", "not ready", "stream removed")),
    ("away", (), ("cancelled", "closed channel", "open local milvus failed")),
)


def _meant(address: Address, code: str, message: str) -> GalleryError:
    """Return what an error of the client means."""
    text = message.lower()
    fits = (what for what, codes, words in _MEANINGS if code in codes or any(re.search(word, text) for word in words))
    kinds: dict[str, tuple[type[ServerError], str, str]] = {
        "full": (ServerError, f"takes no more ({_short(message)})", "wait, or give it more room"),
        "late": (Late, f"did not answer within {time_limit():g} s", f"try again later, or raise {TIMEOUT}"),
        "token": (ServerError, "refuses the token", f"set {TOKEN} to user:password or an API key"),
        "right": (ServerError, "does not allow this to the token's user", "ask its administrator for the right"),
        "other": (ServerError, "is no Milvus server", "check the address; the port is 19530 unless it was changed"),
        "unloaded": (Unloaded, "has not loaded the gallery", "load its collections"),
        "unindexed": (Unindexed, "has lost an index of the gallery", "run `skumatch gallery index`"),
        "there": (There, f"answered: {_short(message)}", "see the server's log"),
        "foreign": (ServerError, "holds something else under this name", "choose another name"),
        "away": (Away, "cannot be reached", "start the server, or check the address and the network"),
    }
    kind, what, todo = kinds.get(next(fits, ""), (ServerError, f"answered: {_short(message)}", "see the server's log"))
    return kind(f"{address} {what}", todo)


def _short(message: str) -> str:
    """Return the first line of ``message``, cut off after 200 characters."""
    return " ".join(message.splitlines()[0].split())[:200] if message.strip() else "an error without a word"
