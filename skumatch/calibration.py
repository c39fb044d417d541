"""Whether an answer is accepted, to be reviewed, or the crop shows no known SKU, and how probably it is right.

Three pieces of evidence speak about the best answer: its score, its lead over the second SKU (look-alikes score high
together), and its score against how alike the SKU's own reference views are. A logistic model fitted by
``skumatch calibrate`` turns them into a probability; two thresholds on it decide. This module only applies what was
fitted; how it is fitted stands in ``skumatch.eval.calibrate``.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skumatch.errors import ModelError
from skumatch.nearest import Nearest
from skumatch.spec import Vectors

Decision = Literal["accept", "review", "unknown"]
Floats = NDArray[np.float64]

FILE = "calibration.json"
FORMAT = 1
EVIDENCE = ("score", "margin", "closeness")
COHESION_VIEWS = 32  # views of a SKU that its cohesion looks at, at most
PRIOR_VIEWS = 3  # weight of the typical cohesion against a SKU's own, in views
NOTHING = math.nextafter(1, 2)  # the threshold that no probability reaches


@dataclass(frozen=True)
class Calibration:
    """A fitted decision rule.

    The probability that the best answer is right is ``sigmoid(intercept + weights . evidence)``, the evidence being
    (score, margin, closeness). ``typical``: median cohesion of a SKU, for SKUs with few views. ``accept``: at and
    above this probability the answer is accepted (``NOTHING``: none is); ``unknown``: below it the crop shows no known
    SKU; in between it is for review. ``spec_digest``: the encoder it was fitted with. ``facts``: target, data and
    figures of the fit.
    Raises ModelError for values out of range.
    """

    spec_digest: str
    intercept: float
    weights: tuple[float, float, float]
    typical: float
    accept: float
    unknown: float
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        numbers = (self.intercept, *self.weights, self.typical, self.accept, self.unknown)
        ordered = 0 <= self.unknown <= self.accept <= NOTHING
        if len(self.weights) != len(EVIDENCE) or not all(map(math.isfinite, numbers)) or not ordered:
            raise ModelError("the calibration holds values out of range", "run `skumatch calibrate` again")

    def probability(self, evidence: Floats) -> Floats:
        """Return the probability, 0..1, that each best answer is right; ``evidence`` float64 (N, 3)."""
        return sigmoid(evidence @ np.array(self.weights) + self.intercept)

    def decide(self, probability: float) -> Decision:
        """Return the decision for one answer's probability."""
        if probability >= self.accept:
            return "accept"
        return "unknown" if probability < self.unknown else "review"

    def to_bytes(self) -> bytes:
        """Return the JSON that ``read`` takes."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @staticmethod
    def read(data: bytes) -> Calibration:
        """Build a Calibration from ``to_bytes`` output. Raises ModelError when it is not that."""
        try:
            document = json.loads(data)
            if document.pop("format") == FORMAT and _typed(document):
                return Calibration(**document)
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError):
            pass
        raise ModelError(f"{FILE} is broken or was written by another version", "run `skumatch calibrate` again")


def _typed(document: dict[str, Any]) -> bool:
    """Return whether ``document`` has the fields of a Calibration, each of its type."""
    kinds = {"spec_digest": str, "weights": list, "facts": dict}
    if set(document) != {f.name for f in fields(Calibration)}:
        return False
    numbers = [*document["weights"], *(value for name, value in document.items() if name not in kinds)]
    plain = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers)
    return plain and all(isinstance(document[name], kind) for name, kind in kinds.items())


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    found: Floats = np.where(x >= 0, 1 / (1 + e), e / (1 + e))
    return found


def evidence_of(found: Nearest, cohesion: Floats) -> Floats:
    """Return float64 (N, 3): score, margin and closeness of the best answers.

    ``found``: at least the two nearest SKUs of N queries (an absent second SKU counts as cosine 0); ``cohesion``
    float64 (N,): of the best SKU, see ``shrunk``.
    """
    best = found.scores[:, 0].astype(np.float64)
    second = np.where(found.skus[:, 1] >= 0, found.scores[:, 1].astype(np.float64), 0)
    return np.stack([best, best - second, best - cohesion], axis=1)


def cohesion_of(vectors: Vectors) -> float:
    """Return the mean cosine of each view to its nearest sister, of float32 (n, D) views of one SKU; NaN for n < 2."""
    some = np.asarray(vectors[:COHESION_VIEWS], np.float32)
    if len(some) < 2:
        return math.nan
    alike = some @ some.T
    np.fill_diagonal(alike, -np.inf)
    return float(alike.max(axis=1).mean())


def shrunk(own: float, views: int, typical: float) -> float:
    """Return a SKU's cohesion drawn towards ``typical``, the more the fewer ``views`` it has."""
    if views < 2:
        return typical
    return (views * own + PRIOR_VIEWS * typical) / (views + PRIOR_VIEWS)
