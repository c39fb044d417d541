"""A folder as ``skumatch dedupe`` writes it, made up without it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import draw

SIGNALS = ("hash", "words")
Pair = tuple[str, str, float]


def write_results(out: Path, groups: Mapping[str, Sequence[tuple[str, float]]], pairs: Sequence[Pair] = ()) -> Path:
    """Write ``groups`` of postings with their confidence, each posting with a drawn picture and a title but for those
    that begin with "x", and ``pairs`` of postings with their probability; return the folder."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "groups.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("group", "posting_id", "image", "title", "confidence"))
        for number, (group, members) in enumerate(groups.items()):
            for view, (posting, confidence) in enumerate(members):
                image = "" if posting.startswith("x") else f"{group}-{view}.png"
                if image:
                    draw(number, view).save(out / image)
                table.writerow((group, posting, image, "" if not image else f"Title of {posting}", f"{confidence:.6f}"))
    write_pairs(out / "pairs.parquet", pairs)
    (out / "dedupe.json").write_text(json.dumps({"format": 1, "rule": {"kind": "union", "threshold": 0.5}}))
    return out


def write_pairs(path: Path, pairs: Sequence[Pair], rows: int = 1000) -> None:
    """Write pairs, ``rows`` in a row group: those of hashes alike agree in amounts, others contradict."""
    ends: dict[str, Any] = {"left": [one[0] for one in pairs], "right": [one[1] for one in pairs]}
    probability = [one[2] for one in pairs]
    scores: dict[str, list[float | None]] = {
        "hash": list(probability),
        "words": [None if p < 0.3 else p / 2 for p in probability],
    }
    columns = {
        **{name: pa.array(ids, pa.string()) for name, ids in ends.items()},
        "probability": pa.array(probability, pa.float32()),
        **{name: pa.array([float("nan") if s is None else s for s in of], pa.float32()) for name, of in scores.items()},
        "amounts_contradict": pa.array([int(p < 0.5) for p in probability], pa.uint8()),
        "amounts_agree": pa.array([int(p >= 0.5) for p in probability], pa.uint8()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=rows)
