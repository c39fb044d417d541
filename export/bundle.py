"""Publishing exports in a model's bundle, with what was measured of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skumatch.export.parity import Parity
from skumatch.model import Bundle, with_files
from skumatch.runtime.exports import EXPORTS, Way, entry_of, listed


@dataclass(frozen=True)
class Made:
    """An export before it is published: its ``files``, the ``ways`` to run them, and ``facts`` about each file."""

    files: dict[str, bytes]
    ways: tuple[Way, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the files into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


def publish(bundle: Bundle, made: Made, found: Mapping[str, Parity]) -> Path:
    """Put ``made`` and the parity of its ways, by name, into a new version of ``bundle``; what has the same name goes.

    Returns the version's folder. Raises ArtefactError when the disk refuses.
    """
    known = listed(bundle)
    files = {**known["files"], **{name: {**made.facts, "model": bundle.spec.digest} for name in made.files}}
    kept = {name: entry for name, entry in known["ways"].items() if entry["file"] not in made.files}
    ways = {**kept, **{way.name: entry_of(way, found[way.name].to_json()) for way in made.ways}}
    document = json.dumps({"files": files, "ways": ways}, indent=1).encode()  # the most sensitive layers stay first
    return with_files(bundle, {**made.files, EXPORTS: document})
