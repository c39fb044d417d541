"""Arrow files that outlive their name, and names that Arrow cannot hold. It knows nothing about what is in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skumatch.errors import ArtefactError

if TYPE_CHECKING:
    from pyarrow import Array


def mapped(path: Path) -> Any:
    """Return the file mapped into memory: it stays readable after it was removed. Raises ArtefactError."""
    import pyarrow as pa

    try:
        return pa.memory_map(os.fsencode(path))  # Arrow takes text in UTF-8 alone
    except (pa.ArrowException, OSError) as error:
        raise ArtefactError(f"{path} cannot be opened ({error})", "restore it from a copy") from error


def findable(names: Sequence[str]) -> Array:
    """Return ``names`` as an Arrow array to look up; null for one that is not Unicode text, which nothing is called."""
    import pyarrow as pa

    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError:
        return pa.array([name if name.isascii() or _is_text(name) else None for name in names], pa.string())


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
