"""Mixes of weights that are tried when training is over: WiSE-FT and the soup of the last epochs.

Pure functions of state dicts and of right and wrong answers. Knows nothing about folders or pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skumatch.errors import ModelError
from skumatch.finetune.parts import After

MOST_LOST = 0.01  # top-1 that a mix may lose on SKUs of either kind
State = dict[str, Tensor]


def mix(untouched: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> State:
    """Return untouched + ``share`` * (trained - untouched) for floating tensors; integers are the trained ones.

    Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022). Raises ModelError when keys or shapes differ.
    """
    _same(untouched, trained)
    if share in (0, 1):
        return {name: (trained if share else untouched)[name].clone() for name in trained}
    return {name: _lerp(untouched[name], tensor, share) for name, tensor in trained.items()}


def _lerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    if not end.is_floating_point():
        return end.clone()
    return torch.lerp(start.double(), end.double(), share).to(end.dtype)


def soup(states: Sequence[Mapping[str, Tensor]]) -> State:
    """Return the mean of floating tensors, and the integers of the last state (at least one is needed).

    Izmailov et al., "Averaging weights leads to wider optima" (2018); Wortsman et al., "Model soups" (ICML 2022).
    Raises ModelError when keys or shapes differ.
    """
    for state in states[1:]:
        _same(states[0], state)
    return {name: _mean([state[name] for state in states]) for name in states[-1]}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[-1].is_floating_point():
        return tensors[-1].clone()
    total = tensors[0].double()
    for tensor in tensors[1:]:
        total = total + tensor
    return (total / len(tensors)).to(tensors[-1].dtype)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        raise ModelError("weights of two different networks cannot be mixed", "mix versions of one model")


@dataclass(frozen=True)
class Candidate:
    """Weights of the image tower under a ``name``; ``reestimate``: a mix, whose batch statistics belong to neither."""

    name: str
    state: State
    reestimate: bool


def candidates(
    trained: Mapping[str, Tensor], untouched: Mapping[str, Tensor], last: Sequence[State], how: After
) -> Iterator[Candidate]:
    """Yield the trained weights, the soup of the ``last`` epochs and the shares of the way to either, one at a time."""
    yield Candidate("trained", dict(trained), False)
    ends: list[tuple[str, Mapping[str, Tensor]]] = [("WiSE-FT", trained)]
    if how.soup > 1 and len(last) > 1:
        mixed = soup(last)
        yield Candidate(f"soup of {len(last)}", mixed, True)
        ends.append((f"soup of {len(last)}, WiSE-FT", mixed))
    for name, end in ends:
        for share in how.wise_ft:
            if share != 1:
                yield Candidate(f"{name} {share:g}", mix(untouched, end, share), share != 0)


@dataclass(frozen=True)
class Measured:
    """Right answers of a candidate: bool (Q,) on validation, bool (U,) on SKUs that were held out (may be none)."""

    name: str
    validation: NDArray[np.bool_]
    unseen: NDArray[np.bool_]

    @property
    def score(self) -> float:
        """Top-1 on validation; with SKUs held out, the mean of both kinds."""
        known = float(self.validation.mean()) if len(self.validation) else 0.0
        return (known + float(self.unseen.mean())) / 2 if len(self.unseen) else known


def choose(measured: Sequence[Measured]) -> int:
    """Return which candidate is kept: the first, which is the trained one, unless another has a higher score.

    One that loses more than a point of top-1 on validation or on held-out SKUs is refused. Of equals the earlier
    stays. The best of several on the same pictures is flattered by chance; the figure of the one kept is no estimate.
    """
    trained, kept = measured[0], 0
    for place, one in enumerate(measured):
        lost = max(_lost(trained.validation, one.validation), _lost(trained.unseen, one.unseen))
        if one.score > measured[kept].score and lost <= MOST_LOST + 1e-9:
            kept = place
    return kept


def _lost(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    return float(before.mean() - after.mean()) if len(before) else 0.0


def record(measured: Sequence[Measured], kept: int) -> list[dict[str, Any]]:
    """Return what was seen, JSON-ready, for model.json."""
    return [
        {
            "name": one.name,
            "validation_top1": float(one.validation.mean()) if len(one.validation) else None,
            "unseen_top1": float(one.unseen.mean()) if len(one.unseen) else None,
            "kept": place == kept,
        }
        for place, one in enumerate(measured)
    ]
