"""How probably two postings show one product, by a scorer that was learned from labelled groups.

The scorer is boosted regression trees or a logistic model over the features of a pair, with Platt's sigmoid on top
that makes its answer a calibrated probability. This module keeps, checks and applies what was fitted; how it is
fitted stands in ``skumatch.finetune.pair_scorer``. It knows nothing about what the features mean, and needs numpy
alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.calibration import sigmoid
from skumatch.errors import ModelError

FORMAT: Final = 1
LEAF: Final = -1  # in place of a feature
MOST_LEAVES: Final = 16  # of a tree: one bit each of a uint16
BLOCK: Final = 16_384  # pairs at a time, so that what a tree touches stays in the processor's cache
_LIMITS: Final = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))
Kind = Literal["boosting", "logistic"]
Values = NDArray[np.float32]
Floats = NDArray[np.float64]
_BITS: Final = np.arange(1 << MOST_LEAVES)
_LOWEST: Final = np.log2(np.maximum(_BITS & -_BITS, 1)).astype(np.int64)  # place of the lowest bit that is set
# A tree ready to be applied: its inner nodes as (feature, threshold, leaves that are out for values above it), then
# the values of its leaves, from left to right.
_Ready = tuple[list[tuple[int, np.float32, np.uint16]], Floats]


@dataclass(frozen=True)
class Trees:
    """Regression trees whose leaves add up, on top of ``base``, to a score in log-odds.

    A tree is written from the root, each node before its left and then its right branch. ``features`` of a tree holds
    the column that each node looks at, -1 for a leaf; ``numbers`` the thresholds (a value up to it goes left) and the
    leaves' values. Thresholds are rounded down to float32, which changes no decision on float32 values. A tree has
    up to 16 leaves. Raises ModelError for what is not such trees.
    """

    base: float
    features: tuple[tuple[int, ...], ...]
    numbers: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        finite = math.isfinite(self.base) and all(math.isfinite(n) for tree in self.numbers for n in tree)
        if not finite or len(self.features) != len(self.numbers) or not self._ready:
            raise _broken("its trees hold no numbers")

    @property
    def kind(self) -> Kind:
        """What the file calls it."""
        return "boosting"

    @cached_property
    def _ready(self) -> list[_Ready]:
        return [_readied(*tree) for tree in zip(self.features, self.numbers, strict=True)]

    def check(self, columns: int) -> None:
        """Raise ModelError where a node looks at a column that is not among ``columns``."""
        if any(feature >= columns for tree in self.features for feature in tree):
            raise _broken("a tree looks at a feature that is not there")

    def score(self, values: Values) -> Floats:
        """Return the log-odds float64 (P,) of ``values`` float32 (P, F), which are finite.

        Every node is compared with a whole block of pairs; the leaf that is left over is the answer (Lucchese et al.
        2015, "QuickScorer", section 3).
        """
        columns, total = np.ascontiguousarray(values.T), np.full(len(values), self.base)
        above, place = np.empty(len(values), np.bool_), np.empty(len(values), np.int64)
        out, more = (np.empty(len(values), np.uint16) for _ in range(2))
        for nodes, leaves in self._ready:
            out[:] = 0
            for feature, threshold, left in nodes:
                np.greater(columns[feature], threshold, out=above)
                np.bitwise_or(out, np.multiply(above, left, out=more), out=out)
            np.take(_LOWEST, np.invert(out, out=out), out=place, mode="clip")  # "clip" alone writes to place at once
            total += np.take(leaves, place, mode="clip")
        return total


@dataclass(frozen=True)
class Linear:
    """``bias`` + ``weights`` . (values - ``mean``) / ``scale``: a score in log-odds. All (F,).

    Raises ModelError for lengths that differ and numbers that are not finite.
    """

    bias: float
    weights: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.bias, *self.weights, *self.mean, *self.scale)))
        if not finite or not len(self.weights) == len(self.mean) == len(self.scale) or min(self.scale, default=0) <= 0:
            raise _broken("its weights are no numbers")

    @property
    def kind(self) -> Kind:
        """What the file calls it."""
        return "logistic"

    def check(self, columns: int) -> None:
        """Raise ModelError unless there is a weight for each of the ``columns``."""
        if len(self.weights) != columns:
            raise _broken(f"it has {len(self.weights)} weights for {columns} features")

    def score(self, values: Values) -> Floats:
        """Return the log-odds float64 (P,) of ``values`` float32 (P, F), which are finite."""
        scaled = (values - np.array(self.mean)) / np.array(self.scale)
        found: Floats = scaled @ np.array(self.weights) + self.bias
        return found


@dataclass(frozen=True)
class PairScorer:
    """A fitted scorer of pairs.

    ``names``: of the F features, in their order. ``fill``: what stands for a feature that is absent. ``model``: turns
    features into log-odds. ``slope`` and ``shift``: Platt's sigmoid, the probability being
    ``sigmoid(shift + slope * log-odds)``. ``facts``: of the fit. Raises ModelError for parts that do not fit together.
    """

    names: tuple[str, ...]
    fill: tuple[float, ...]
    model: Trees | Linear
    slope: float = 1.0
    shift: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names) or len(self.fill) != len(self.names):
            raise _broken("its features are named twice or lack a value to fill in")
        if not all(map(math.isfinite, (self.slope, self.shift, *self.fill))) or self.slope <= 0:
            raise _broken("its calibration holds values out of range")
        self.model.check(len(self.names))

    def probability(self, features: Values) -> Values:
        """Return float32 (P,) in 0..1 of ``features`` float32 (P, F); what is not finite counts as absent.

        Raises ValueError for another number of columns.
        """
        return sigmoid(self.shift + self.slope * self.score(features)).astype(np.float32)

    def score(self, features: Values) -> Floats:
        """Return the log-odds float64 (P,) before calibration. Raises ValueError as ``probability`` does."""
        if features.ndim != 2 or features.shape[1] != len(self.names):
            raise ValueError(f"features are {features.shape}, not (pairs, {len(self.names)})")
        fill, found = np.array(self.fill, np.float32), np.empty(len(features))
        for start in range(0, len(features), BLOCK):
            block = np.asarray(features[start : start + BLOCK], np.float32)
            found[start : start + BLOCK] = self.model.score(np.where(np.isfinite(block), block, fill))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return what ``from_json`` takes, as JSON-ready values."""
        document = {"format": FORMAT, **asdict(self), "model": {"kind": self.model.kind, **asdict(self.model)}}
        found: dict[str, Any] = json.loads(json.dumps(document))  # tuples become lists
        return found

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> PairScorer:
        """Build a scorer from ``to_json`` output. Raises ModelError when it is not that."""
        try:
            if document["format"] != FORMAT:
                raise _broken("it was written by another version")
            return PairScorer(
                names=tuple(_text(name) for name in document["names"]),
                fill=_numbers(document["fill"]),
                model=_model(document["model"]),
                slope=_number(document["slope"]),
                shift=_number(document["shift"]),
                facts=dict(document["facts"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _broken(f"{error!s:.80} is not as it should be") from error

    def to_bytes(self) -> bytes:
        """Return the JSON that ``from_bytes`` takes."""
        return (json.dumps(self.to_json()) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> PairScorer:
        """Build a scorer from ``to_bytes`` output. Raises ModelError when it is not that."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _broken("it is not JSON") from error
        return PairScorer.from_json(document)


def _readied(features: Sequence[int], numbers: Sequence[float]) -> _Ready:
    """Return a tree as ``Trees.score`` needs it. Raises ModelError for what is no tree of up to 16 leaves."""
    if len(features) != len(numbers) or len(features) > 2 * MOST_LEAVES - 1 or min(features, default=0) < LEAF:
        raise _broken("a tree is no tree")
    nodes: list[tuple[int, np.float32, np.uint16]] = []
    leaves: list[float] = []
    place = 0

    def grow() -> None:  # at most 16 calls deep
        nonlocal place
        if place == len(features):
            raise _broken("a tree breaks off")
        feature, number = features[place], numbers[place]
        place += 1
        if feature == LEAF:
            leaves.append(number)
            return
        before, own = len(leaves), len(nodes)
        nodes.append((feature, rounded_down(number), np.uint16(0)))
        grow()
        nodes[own] = (*nodes[own][:2], np.uint16((1 << len(leaves)) - (1 << before)))
        grow()

    grow()
    if place != len(features):
        raise _broken("a tree goes on after its end")
    return nodes, np.array(leaves + [0.0] * (MOST_LEAVES - len(leaves)))


def rounded_down(threshold: float) -> np.float32:
    """Return the largest float32 that is not above ``threshold``: the same float32 values are up to either."""
    near = np.float32(np.clip(threshold, *_LIMITS))
    with np.errstate(over="ignore"):  # below the smallest lies minus infinity
        return near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf))


def _model(document: Mapping[str, Any]) -> Trees | Linear:
    kind = document["kind"]
    if kind == "boosting":
        features = tuple(tuple(_whole(one) for one in tree) for tree in document["features"])
        return Trees(_number(document["base"]), features, tuple(_numbers(tree) for tree in document["numbers"]))
    if kind == "logistic":
        each = (_numbers(document[name]) for name in ("weights", "mean", "scale"))
        return Linear(_number(document["bias"]), *each)
    raise _broken(f"unknown kind '{kind!s:.40}'")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} as a name")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} as a whole number")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{value!r} as a number")
    return float(value)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(_number(value) for value in values)


def _broken(why: str) -> ModelError:
    return ModelError(f"the pair scorer is broken: {why}", "learn it anew")
