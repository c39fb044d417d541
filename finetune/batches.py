"""Which SKUs meet in one batch: look-alikes, as a list names them or as the current embedding shows them.

Knows nothing about how often a SKU is drawn (``skumatch.finetune.sampler``) or about networks: it sees labels and
embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skumatch.errors import ArtefactError, ConfigError, DataError
from skumatch.eval.lookalikes import read_lookalikes
from skumatch.finetune.recipe import Recipe
from skumatch.readers_common import shown
from skumatch.spec import Ids, Vectors

UNIT = 2**24  # the 1 of the fixed-point sums; float32 holds no finer steps just below 1
BLOCK = 2**24  # cosines held at once when neighbours are searched: 64 MiB
PASSES = 4  # searches for neighbours among what is not in a full group yet
NEIGHBOURS = (8, 32)  # of each SKU, at least and at most


@dataclass(frozen=True)
class Lookalikes:
    """Which labels look alike: int64 labels per group, each label in one group at most; ``share`` of a batch, 0..1,
    that is filled from a group; ``unknown``: listed SKUs that are not trained on. Empty, it changes nothing."""

    groups: tuple[Ids, ...] = ()
    share: float = 0.0
    unknown: tuple[str, ...] = ()


def require_room(recipe: Recipe) -> None:
    """Raise ConfigError when the recipe's share of a batch has no room for two look-alikes."""
    how, pk = recipe.sampler, recipe.sampler.draw == "pk"
    places = -(-recipe.batch // how.per_sku) if pk else recipe.batch
    if round(how.lookalike_share * places) < 2:
        held = f"{places} SKUs" if pk else str(recipe.batch)
        said = f"recipe: lookalike_share is {how.lookalike_share} of a batch of {held}"
        few = "less than two SKUs" if pk else "less than two pictures"
        raise ConfigError(f"{said}: {few}", "raise lookalike_share or batch, or leave out the look-alikes")


def load_lookalikes(path: Path, skus: Sequence[str], recipe: Recipe) -> Lookalikes:
    """Read a list of look-alikes (``skumatch.eval.lookalikes``) for training on ``skus``, whose places are the labels.

    SKUs that are not trained on are left out, and groups of which fewer than two SKUs remain. Raises DataError for a
    bad list or one without any group left, ConfigError when the recipe's share of a batch has no room for two.
    """
    require_room(recipe)
    listed = read_lookalikes(path)
    place = {sku: label for label, sku in enumerate(skus)}
    labels = [np.array([place[sku] for sku in group if sku in place], np.int64) for group in listed]
    groups = tuple(members for members in labels if len(members) > 1)
    if not groups:
        raise DataError(f"{shown(path)} groups no two SKUs that are trained on", "make the list from this data set")
    unknown = tuple(sku for group in listed for sku in group if sku not in place)
    return Lookalikes(groups, recipe.sampler.lookalike_share, unknown)


def lookalike_order(order: Ids, labels: Ids, batch: int, alike: Lookalikes, key: tuple[int, int]) -> Ids:
    """Return ``order`` (of ``epoch_order``) rearranged so that look-alikes meet in batches of ``batch``.

    ``round(share * batch)`` places of as many batches as there are pictures for are filled from one group after the
    other; all other places keep the order's shuffled rest. What ``order`` holds beyond its last full batch stays where
    it is, so the full batches together show exactly the pictures that they show without look-alikes. ``key``: seed and
    epoch.
    """
    full = len(order) // batch * batch
    places = round(alike.share * batch)
    if not alike.groups or places < 2 or not full:
        return order
    rng = np.random.default_rng((*key, 2))
    stream, rest = by_group(order[:full], labels, alike.groups, rng)
    runs = min(full // batch, len(stream) // places)
    chosen = rng.permutation(full // batch)[:runs]
    lines = np.empty((full // batch, batch), np.int64)
    alone = np.ones(lines.shape, bool)
    alone[chosen, :places] = False
    lines[chosen, :places] = stream[: runs * places].reshape(runs, places)
    lines[alone] = rng.permutation(np.concatenate([rest, stream[runs * places :]]))
    return np.concatenate([lines.ravel(), order[full:]])


def by_group(order: Ids, labels: Ids, groups: Sequence[Ids], rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Part ``order``, positions into ``labels``, into those of grouped labels, group by group, and the rest.

    Groups come in random order; within one, each SKU is spread evenly over the group's stretch, so that every part of
    it mixes the group's SKUs.
    """
    group_of = np.full(1 + max(int(labels.max()), *(int(members.max()) for members in groups)), -1, np.int64)
    for number, members in zip(rng.permutation(len(groups)), groups, strict=True):
        group_of[members] = number
    label = labels[order]
    grouped = np.flatnonzero(group_of[label] >= 0)
    found, code, count = np.unique(label[grouped], return_inverse=True, return_counts=True)
    spread = (nth(code) + rng.random(len(grouped))) / count[code]
    stream = order[grouped[np.lexsort((spread, group_of[found][code]))]]
    return stream, order[group_of[label] < 0]


def nth(codes: Ids) -> Ids:
    """Return, for each of ``codes`` (N,), all at least 0, how often it came before: 0 the first time."""
    count = np.bincount(codes)
    found = np.empty(len(codes), np.int64)
    found[np.argsort(codes, kind="stable")] = np.arange(len(codes)) - np.repeat(np.cumsum(count) - count, count)
    return found


class Centres:
    """The mean direction of each SKU's embeddings over an epoch, in which look-alikes are found for the next one.

    The sums are in fixed point: whole numbers add up to the same whatever the order in which a GPU, or several
    processes, add them. They take 8 bytes per SKU and dimension, from the first ``add`` on.
    """

    def __init__(self, skus: int, dim: int, device: torch.device) -> None:
        self.shape = (skus, dim)
        self.device = device
        self._sums: Tensor | None = None

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Count float (N, dim) embeddings of any length with int64 (N,) labels; numbers that are not finite count 0."""
        if self._sums is None:
            self._sums = torch.zeros(self.shape, dtype=torch.int64, device=self.device)
        unit = F.normalize(embeddings.detach().float())
        self._sums.index_add_(0, labels, torch.nan_to_num(unit * UNIT).round().long())

    def take(self) -> Vectors:
        """Return float32 (SKUs, dim): unit rows, and rows of 0 for SKUs that were not shown since ``reset``."""
        if self._sums is None:
            return np.zeros(self.shape, np.float32)
        unit: Vectors = F.normalize(self._sums.float()).cpu().numpy()
        return unit

    def reset(self) -> None:
        """Start anew, as every epoch does."""
        if self._sums is not None:
            self._sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums so far for a checkpoint (the live tensor, not a copy); empty before the first ``add``."""
        return {} if self._sums is None else {"sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state_dict()``, of any device. Raises ArtefactError when its shape is another."""
        sums = state.get("sums")
        if sums is not None and (sums.shape != self.shape or sums.dtype != torch.int64):
            said = f"the checkpoint's centres do not fit {self.shape[0]} SKUs of {self.shape[1]} numbers"
            raise ArtefactError(said, "start a new run")
        self._sums = None if sums is None else sums.to(self.device, copy=True)


def groups_of(
    centres: Vectors, group: int, seed: int, epoch: int, device: torch.device | None = None
) -> tuple[Ids, ...]:
    """Return disjoint groups of 2 to ``group`` SKUs that are close, the closest first; int64 rows of ``centres``.

    ``centres``: float32 (SKUs, E), unit rows; the SKUs of rows that are 0 or not finite are in no group. Starting with
    the closest pair of neighbours, the groups of the two are joined where they fit into one. That is done for single
    SKUs and then for the means of groups that are not full; SKUs still alone after that are grouped along a random
    direction, on which equal centres are equal, and one may be left. ``seed`` and ``epoch`` break ties. ``device``
    computes the cosines (None: the CPU), in blocks of 64 MiB (or one row).
    """
    rng = np.random.default_rng((seed, epoch, 4))
    usable = np.flatnonzero(np.isfinite(centres).all(axis=1) & (centres != 0).any(axis=1))
    direction = rng.standard_normal(centres.shape[1], dtype=np.float32)
    units: list[Ids] = list(rng.permutation(usable)[:, None])
    groups: list[Ids] = []
    for _ in range(PASSES):
        if len(units) < 2:
            break
        means = torch.from_numpy(_sums(centres, units)).to(device or "cpu")
        cosines, others = _neighbours(F.normalize(means), group)
        joined = _joined(cosines, others, [len(unit) for unit in units], group)
        if len(joined) == len(units):
            break
        units = [np.concatenate([units[place] for place in places]) for places in joined]
        groups += [unit for unit in units if len(unit) == group]
        units = [unit for unit in units if len(unit) < group]
    groups += [unit for unit in units if len(unit) > 1]
    alone = np.array([unit[0] for unit in units if len(unit) == 1], np.int64)
    line = alone[np.argsort(centres[alone] @ direction, kind="stable")]
    groups += [line[start : start + group] for start in range(0, len(line) - 1, group)]
    return _closest_first(centres, groups)


def _sums(centres: Vectors, units: Sequence[Ids]) -> Vectors:
    """Return the sum of each unit's rows (Units, E)."""
    starts = np.cumsum([0, *(len(unit) for unit in units[:-1])])
    sums: Vectors = np.add.reduceat(centres[np.concatenate(units)], starts, axis=0)
    return sums


def _closest_first(centres: Vectors, groups: Sequence[Ids]) -> tuple[Ids, ...]:
    """Sort ``groups`` by the mean cosine of their pairs, which follows from the length of their sum."""
    if not groups:
        return ()
    count = np.array([len(members) for members in groups])
    cosine = (np.square(_sums(centres, groups)).sum(axis=1) - count) / (count * (count - 1))
    return tuple(groups[place] for place in np.argsort(-cosine, kind="stable"))


def _neighbours(rows: Tensor, group: int) -> tuple[Vectors, Ids]:
    """Return the cosines and places of each row's nearest others, both (N, K), nearest first."""
    count = len(rows)
    k = min(count - 1, max(NEIGHBOURS[0], min(2 * group, NEIGHBOURS[1])))
    step = max(1, BLOCK // count)
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, count, step):
        cosines = rows[start : start + step] @ rows.T
        own = torch.arange(len(cosines), device=rows.device)
        cosines[own, own + start] = -torch.inf
        values, places = cosines.topk(k, dim=1)
        found.append((values, places))
    values, places = (torch.cat([pair[side] for pair in found]) for side in (0, 1))
    return values.cpu().numpy(), places.cpu().numpy()


def _joined(cosines: Vectors, others: Ids, sizes: Sequence[int], most: int) -> list[list[int]]:
    """Join units, whose ``sizes`` are given, from the closest neighbours on, to lists of at most ``most`` in size."""
    home = list(range(len(sizes)))
    size, members = list(sizes), [[place] for place in home]
    order = np.argsort(-cosines, axis=None, kind="stable")
    for one, other in zip((order // others.shape[1]).tolist(), others.ravel()[order].tolist(), strict=True):
        a, b = home[one], home[other]
        if a == b or size[a] + size[b] > most:
            continue
        for place in members[b]:
            home[place] = a
        members[a] += members[b]
        size[a], members[b] = size[a] + size[b], []
    return [places for places in members if places]
