"""The objectives of a recipe, weighted and summed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skumatch.finetune.objectives.arcface import LinearSoftmax, NormalizedSoftmax, SubCentreArcFace
from skumatch.finetune.objectives.base import Objective, Seen, Setting
from skumatch.finetune.objectives.clip import Clip, text_parameters
from skumatch.finetune.objectives.distil import Distil
from skumatch.finetune.objectives.retain import Retain
from skumatch.finetune.objectives.supcon import SupCon
from skumatch.model import open_bundle
from skumatch.towers.base import Tower
from skumatch.towers.build import ModelSource, build


class Total(nn.Module):
    """The weighted sum of several objectives."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        wanted = vars(setting.recipe.objectives)
        self.weights = {name: weight for name, weight in wanted.items() if weight}
        self.each = nn.ModuleDict({name: _make(name, setting) for name in self.weights})
        self.text = text_groups(setting)

    def forward(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum, with gradient, and each objective's own value, unweighted and without."""
        parts = {name: objective(seen) for name, objective in self.each.items()}
        total = sum(weight * parts[name] for name, weight in self.weights.items())
        return total, {name: part.detach() for name, part in parts.items()}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return AdamW groups: prototypes, temperatures and projections at ``lr`` without decay, then the text's."""
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [*([{"params": own, "lr": lr, "weight_decay": 0.0}] if own else []), *self.text]


def objectives(setting: Setting) -> Total:
    """Return the objectives that the recipe gives a weight. Raises ModelError where the encoder lacks what it takes."""
    return Total(setting)


def _make(name: str, setting: Setting) -> Objective:
    recipe, dim = setting.recipe, setting.recipe.embedding
    if name == "arcface":
        return SubCentreArcFace(setting.counts, dim, recipe.arcface)
    if name == "softmax":
        kind = NormalizedSoftmax if recipe.softmax.normalised else LinearSoftmax
        return kind(len(setting.counts), dim, recipe.softmax)
    if name == "supcon":
        return SupCon(recipe.supcon)
    if name == "clip":
        return Clip(setting)
    if name == "retain":
        return Retain(setting.tower, setting.device)
    return Distil(setting.tower.dim, teacher_of(recipe.distil.teacher), setting.device)


def teacher_of(name: str) -> Tower:
    """Return the tower of a model folder or of a name such as open_clip:ViT-L-14/openai. Raises SkumatchError."""
    if Path(name).is_dir():
        tower, _, spec = open_bundle(Path(name)).load()
        return replace(tower, name=spec.name)
    return build(ModelSource(name))


def text_groups(setting: Setting) -> list[dict[str, Any]]:
    """Return AdamW groups of the text tower where it learns: matrices decay, norms, biases and embeddings do not."""
    recipe = setting.recipe
    if not recipe.objectives.clip or not recipe.clip.train_text:
        return []
    found = [(name, p) for name, p in text_parameters(setting.tower) if p.is_floating_point()]
    matrices = [p for name, p in found if p.ndim >= 2 and "embedding" not in name]
    others = [p for name, p in found if p.ndim < 2 or "embedding" in name]
    pairs = ((matrices, recipe.weight_decay), (others, 0.0))
    return [{"params": p, "lr": recipe.clip.lr_text, "weight_decay": decay} for p, decay in pairs if p]
