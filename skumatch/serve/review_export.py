"""What people said of crops, as a manifest and pictures for the next fine-tune: a folder, or a ZIP file that is written
while it is sent.

    corrections.csv      path, sku, split, title, decision, verdict, candidate, who, judged
    crops/ab12....jpg    named by the SHA-256 of the file

Rejected crops and new ones without a name are left out.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from skumatch import artefact
from skumatch.csv_cells import safe_cell
from skumatch.errors import ConfigError
from skumatch.images import sniff
from skumatch.serve.problems import Problem
from skumatch.serve.reviews import Review, Reviews
from skumatch.serve.uploads import ENDINGS

MANIFEST = "corrections.csv"
CROPS = "crops"
COLUMNS = ("path", "sku", "split", "title", "decision", "verdict", "candidate", "who", "judged")


def corrections(reviews: Reviews) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield the manifest's line and the picture of each crop of which the SKU is known, in the order they came."""
    for review in reviews.verdicts():
        if review.sku is None:
            continue
        try:
            crop = reviews.crop(review.id)
        except Problem:  # it grew too old meanwhile
            continue
        yield _line(review, crop), crop


def _line(review: Review, crop: bytes) -> dict[str, str]:
    candidates = review.facts.get("candidates") or [{"sku": ""}]
    judged = datetime.fromtimestamp(review.judged or 0.0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "path": f"{CROPS}/{review.sha256}{ENDINGS[sniff(crop)]}",
        "sku": review.sku or "",
        "split": "train",
        "title": str((review.change or {}).get("title", "")),
        "decision": review.decision,
        "verdict": str(review.verdict),
        "candidate": str(candidates[0]["sku"]),
        "who": review.who or "",
        "judged": judged,
    }


def write_folder(reviews: Reviews, out: Path) -> int:
    """Write the corrections to the folder ``out``, which must be empty or absent; return how many there are.

    The manifest comes last: while it is not there, the folder is not whole. Raises ConfigError, ArtefactError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not an empty folder", "give another one")
    lines = []
    with artefact.disk_errors(out):
        (out / CROPS).mkdir(parents=True, exist_ok=True)
        for line, crop in corrections(reviews):
            (out / line["path"]).write_bytes(crop)
            lines.append(line)
        artefact.write_file(out / MANIFEST, _manifest(lines))
    return len(lines)


def zipped(reviews: Reviews) -> Iterator[bytes]:
    """Yield the corrections as a ZIP file, part by part; pictures are not compressed again."""
    stream, lines, names = _Stream(), [], set()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for line, crop in corrections(reviews):
            lines.append(line)
            if line["path"] not in names:
                names.add(line["path"])
                archive.writestr(line["path"], crop)
                yield stream.taken()
        archive.writestr(MANIFEST, _manifest(lines))
    yield stream.taken()


def _manifest(lines: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({name: safe_cell(cell) for name, cell in line.items()} for line in lines)
    return text.getvalue().encode()


class _Stream(io.RawIOBase):
    """Takes what is written, and gives it away."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        """Return that it takes bytes."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes."""
        part = bytes(data)
        self._held += part
        return len(part)

    def taken(self) -> bytes:
        """Return what was written since the last time."""
        held, self._held = bytes(self._held), bytearray()
        return held
