"""The titles of a catalogue as vectors, kept on disk so that an interrupted run goes on where it was.

WORK/texts.npy holds one row per posting, WORK/texts.json what it was made of and how far it is. Knows nothing about
pictures or pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from skumatch import artefact
from skumatch.embed import Progress, no_progress
from skumatch.spec import Vectors

VECTORS, DONE = "texts.npy", "texts.json"
BLOCK: Final = 1024  # titles between two notes


class Texts(Protocol):
    """An encoder of texts; ``digest`` tells it from others."""

    @property
    def digest(self) -> str:
        """What no other encoder has."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Return float32 (N, D) unit rows."""
        ...


def embed_titles(
    titles: Sequence[str], source: str, encoder: Texts, work: Path, progress: Progress = no_progress
) -> Vectors:
    """Return float32 (N, D): a unit row per title, zeros for an empty one. ``source``: what tells catalogues apart.

    What is in ``work`` and of the same catalogue and encoder is not done again. Raises ArtefactError when the disk
    refuses.
    """
    identity = {"catalogue": source, "encoder": encoder.digest}
    with artefact.disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        done = _done(work, identity)
        shape = (len(titles), encoder.encode_text(["a"]).shape[1])
        mode = "r+" if done else "w+"
        rows: Any = np.lib.format.open_memmap(work / VECTORS, mode=mode, dtype=np.float32, shape=shape)
        progress(done)
        for start in range(done, len(titles), BLOCK):
            part = titles[start : start + BLOCK]
            said = [place for place, title in enumerate(part) if title.strip()]
            block = np.zeros((len(part), shape[1]), np.float32)
            if said:
                block[said] = encoder.encode_text([part[place] for place in said])
            rows[start : start + len(part)] = block
            rows.flush()
            facts = {"identity": identity, "done": start + len(part)}
            artefact.write_file(work / DONE, json.dumps(facts).encode())
            progress(len(part))
    return np.asarray(rows)


def _done(work: Path, identity: dict[str, str]) -> int:
    """Return how many titles are embedded already."""
    try:
        found = json.loads((work / DONE).read_bytes())
        return int(found["done"]) if found["identity"] == identity and (work / VECTORS).is_file() else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
