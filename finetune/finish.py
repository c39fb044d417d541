"""From trained weights to what is served: mixes tried on validation, the layer chosen, the vectors whitened.

Knows nothing about folders. Nothing here looks at the split ``test``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skumatch import images
from skumatch.embed import ordered_batches
from skumatch.errors import ImageError
from skumatch.eval.views import Views, codes_in, embed_rows
from skumatch.finetune.after import Candidate, Measured, candidates, choose, record
from skumatch.finetune.guarding import Inside, differing, fit_guard, fit_middle, remember, shared_blocks
from skumatch.finetune.lora import merge_lora
from skumatch.finetune.norms import has_batch_norm, reestimate
from skumatch.finetune.params import frozen_modules
from skumatch.finetune.trainer import Trainer
from skumatch.finetune.validate import BLOCK, LAYERS, Validation, choose_layer
from skumatch.finetune.whiten import fit_pca
from skumatch.runtime.guard import Guard, HalfWay
from skumatch.runtime.served import FEATURES, Layer, Served
from skumatch.runtime.torch import Network, TorchEncoder
from skumatch.spec import Spec
from skumatch.technique_store import unit_rows

WHITEN_ON = 20_000  # training pictures at most that PCA is fitted on
GUARD_ON = 20_000  # validation gallery pictures at most that the guard is fitted on


@dataclass(frozen=True)
class Finished:
    """What a fine-tune ends in: what is served and why, how validation went, the untouched encoder's validation top-1
    (None: not measured) and the mixes of weights that were tried."""

    served: Served
    reason: str
    validation: Validation
    untouched: float | None = None
    tried: tuple[dict[str, Any], ...] = ()


def finish(trainer: Trainer, complete: bool) -> Finished:
    """Settle the averaged weights of ``trainer`` and what is served from them.

    After a ``complete`` training the best epoch, its mixes with the untouched encoder and the soup of the last epochs
    compete on validation; else the newest averaged weights stand. The trained network is left holding the result.
    """
    state = trainer.state
    tried: list[dict[str, Any]] = []
    if complete:
        state.take_best()
    image: nn.Module = state.average["image"]
    merge_lora(image)
    merge_lora(state.image)
    untouched, guard = _untouched(trainer)
    if complete:
        tried = _try_mixes(trainer)
    validation = trainer.validate(image, trainer.split.gallery, trainer.split.queries)
    layer = choose_layer(state.recipe.serve, validation)
    state.image.load_state_dict(image.state_dict())
    why = reason(state.recipe.serve.layer, layer, validation)
    return Finished(_served(trainer, layer, guard), why, validation, untouched, tuple(tried))


def _untouched(trainer: Trainer) -> tuple[float | None, Guard | None]:
    """Return the untouched encoder's validation top-1, and the guard where the recipe asks for one.

    The averaged weights are left as they are.
    """
    state, split = trainer.state, trainer.split
    image: nn.Module = state.average["image"]
    kept = {name: tensor.clone() for name, tensor in image.state_dict().items()}
    blocks = shared_blocks(image, differing(state.untouched, kept))
    image.load_state_dict(state.untouched)
    tower = HalfWay(image, blocks[-1]) if blocks and state.recipe.serve.guard else image
    encoder = TorchEncoder(
        replace(trainer.tower, image=tower, model=tower), None, str(state.device), _spec(trainer, tower)
    )
    views, _ = embed_rows(split.gallery, encoder, trainer.pipeline)
    queries, _ = embed_rows(split.queries, encoder, trainer.pipeline)
    if isinstance(tower, HalfWay):
        tower.close()
    image.load_state_dict(kept)
    top1 = _top1(_columns(views, 0, trainer.spec.dim), _columns(queries, 0, trainer.spec.dim))
    if not state.recipe.serve.guard or not len(views):
        return top1, None
    return top1, _guard(views, queries, trainer.spec.dim, state.recipe.seed)


def _guard(views: Views, queries: Views, dim: int, seed: int) -> Guard:
    """Return the guard of untouched vectors: ``dim`` columns of features, then those from half-way, if any."""
    some = views.take(np.unique(np.linspace(0, len(views) - 1, min(GUARD_ON, len(views))).round().astype(np.int64)))
    guard = fit_guard(_columns(some, 0, dim).vectors, some.codes, seed)
    if some.vectors.shape[1] > dim:
        sides = (
            Inside(_columns(side, 0, dim).vectors, _columns(side, dim, None).vectors, codes_in(side.rows, some.skus))
            for side in (some, queries)
        )
        guard.middle = fit_middle(guard, *sides)
    return guard


def _spec(trainer: Trainer, tower: nn.Module) -> Spec:
    """Return the trainer's spec with the width of what ``tower`` gives."""
    size = trainer.spec.size
    with torch.inference_mode():
        given = tower.eval()(torch.zeros(1, 3, size, size, device=trainer.state.device))
    return replace(trainer.spec, dim=given.shape[1])


def _columns(views: Views, start: int, end: int | None) -> Views:
    """Return some of the columns, as unit rows."""
    return Views(views.rows, unit_rows(views.vectors[:, start:end]) if len(views) else views.vectors[:, start:end])


def _top1(views: Views, queries: Views) -> float | None:
    if not len(views) or not len(queries):
        return None
    blocks = np.array_split(queries.vectors, -(-len(queries) // BLOCK))
    best = np.concatenate([(block @ views.vectors.T).argmax(1) for block in blocks])
    return float(np.mean([views.rows[int(b)].sku == row.sku for b, row in zip(best, queries.rows, strict=True)]))


def _try_mixes(trainer: Trainer) -> list[dict[str, Any]]:
    """Measure every mix of weights, put the best into the averaged image tower and return what was seen."""
    state, split, how = trainer.state, trainer.split, trainer.state.recipe.after
    if not split.queries or (how.soup < 2 and not how.wise_ft):
        return []
    image: nn.Module = state.average["image"]
    trained = {name: tensor.detach().cpu().clone() for name, tensor in image.state_dict().items()}
    measured: list[Measured] = []
    for candidate in candidates(trained, state.untouched, state.last, how):
        _put(trainer, candidate)
        known = trainer.validate(image, split.gallery, split.queries)
        unseen = trainer.validate(image, split.unseen_gallery, split.unseen_queries)
        measured.append(Measured(candidate.name, known.right[FEATURES], unseen.right[FEATURES]))
    kept = choose(measured)
    for place, candidate in enumerate(candidates(trained, state.untouched, state.last, how)):
        if place == kept:
            _put(trainer, candidate)
            break
    return record(measured, kept)


def _put(trainer: Trainer, candidate: Candidate) -> None:
    """Load a candidate into the averaged image tower; where it is a mix, estimate its batch statistics anew.

    Statistics that stood still in training stand still here too.
    """
    recipe = trainer.state.recipe
    image: nn.Module = trainer.state.average["image"]
    image.load_state_dict(candidate.state)
    moved = recipe.batch_norm == "train" and recipe.mode == "full" and has_batch_norm(image)
    if candidate.reestimate and recipe.after.batch_norm and moved:
        frozen = frozen_modules(image, trainer.state.trained)
        reestimate(image, _clean(trainer, recipe.after.batch_norm), frozen)


def _clean(trainer: Trainer, count: int) -> Iterator[Tensor]:
    """Yield normalised batches of up to ``count`` training pictures as they are served, spread over the SKUs."""
    rows = trainer.split.train
    places = torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long().tolist()

    def work(place: int) -> Any:
        try:
            return images.load_pixels(rows[place].path, trainer.spec, trainer.pipeline.max_pixels)
        except ImageError as error:
            return error

    network = Network(trainer.state.average["image"], trainer.spec).to(trainer.state.device)
    for _, decoded in ordered_batches(places, work, trainer.state.recipe.batch, trainer.canvases.workers):
        good = [torch.from_numpy(one) for one in decoded if not isinstance(one, ImageError)]
        if len(good) > 1:
            batch = torch.stack(good).to(trainer.state.device).float()
            yield (batch - network.mean) / network.std


def _served(trainer: Trainer, layer: Layer, guard: Guard | None) -> Served:
    """Return what answers: the layer, whitened and guarded where the recipe asks for it."""
    state, how = trainer.state, trainer.state.recipe.serve
    head: nn.Linear | None = None if layer == FEATURES else state.average["head"]  # type: ignore[assignment]
    if guard is not None:
        guard = remember(guard, state.image, state.untouched)
    if not how.pca:
        return Served(layer, head, how.weight, None, guard)
    rows = trainer.split.train
    places = np.unique(np.linspace(0, len(rows) - 1, min(WHITEN_ON, len(rows))).round().astype(np.int64))
    encoder = TorchEncoder(trainer.tower, Served(layer, head, how.weight), str(state.device))
    views, _ = embed_rows([rows[int(place)] for place in places], encoder, trainer.pipeline)
    return Served(layer, head, how.weight, fit_pca(views.vectors, how.pca), guard)


def reason(asked: str, layer: Layer, validation: Validation) -> str:
    """Return in one line why ``layer`` is served."""
    if asked != "measure":
        return f"the recipe asks for {asked}"
    figures = ", ".join(f"{name} {value:.3f}" for name in LAYERS if (value := validation.top1[name]) is not None)
    if not figures:
        return "no validation pictures: features forget less about SKUs that were not trained on"
    if layer == FEATURES:
        return f"validation top-1 {figures}: nothing is better than the features beyond chance (McNemar, 5 %)"
    return f"validation top-1 {figures}: {layer} is better than the features beyond chance (McNemar, 5 %)"
