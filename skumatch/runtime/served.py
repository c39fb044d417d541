"""What a model answers with, on top of its features: the features, the training head, both, whitened or guarded.

Plain linear algebra on vectors, so that it exports with the network. Knows nothing about pictures or training.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch.runtime.guard import Guard, Middle

FEATURES: Final = "features"
HEAD: Final = "head"
BOTH: Final = "both"
Layer = Literal["features", "head", "both"]


class Served(nn.Module):
    """The layer that a model serves.

    ``layer`` "features"; "head": the linear ``head`` on the features; "both": unit features and unit head side by side,
    so that a dot product is (1 - ``weight``) cos(features) + ``weight`` cos(head). ``whiten``: a linear layer on the
    unit vector of the layer (PCA-whitening). ``guard``: the untouched encoder that stays beside it.
    """

    def __init__(
        self,
        layer: Layer = "features",
        head: nn.Linear | None = None,
        weight: float = 0.5,
        whiten: nn.Linear | None = None,
        guard: Guard | None = None,
    ) -> None:
        super().__init__()
        if (head is None) != (layer == FEATURES):
            raise ValueError(f"layer {layer} {'needs a' if head is None else 'has no'} head")
        self.layer = layer
        self.head = head
        self.weight = weight
        self.whiten = whiten
        self.guard = guard

    @property
    def name(self) -> str:
        """The layer's name as a Spec carries it: "head", "both+pca128", "features+guard", ..."""
        pca = "" if self.whiten is None else f"+pca{self.whiten.out_features}"
        return f"{self.layer}{pca}{'' if self.guard is None else '+guard'}"

    def dim(self, features: int) -> int:
        """Return the width of the answer for ``features`` wide features."""
        head = 0 if self.head is None else self.head.out_features
        plain = {FEATURES: features, HEAD: head, BOTH: features + head}[self.layer]
        own = plain if self.whiten is None else self.whiten.out_features
        return own if self.guard is None else own + self.guard.width

    def forward(self, features: Tensor) -> Tensor:
        """Map float (N, D) features, any length, to float32 (N, E) unit rows; the guard is left to the network."""
        vectors = self._layer(features)
        return vectors if self.whiten is None else F.normalize(self.whiten(vectors), dim=1)

    def _layer(self, features: Tensor) -> Tensor:
        if self.head is None:
            return F.normalize(features.float(), dim=1)
        head = F.normalize(self.head(features).float(), dim=1)
        if self.layer == HEAD:
            return head
        parts = ((1 - self.weight) ** 0.5 * F.normalize(features.float(), dim=1), self.weight**0.5 * head)
        return torch.cat(parts, 1)

    def settings(self) -> dict[str, Any]:
        """Return what is no tensor, JSON-ready; ``tensors`` returns the rest."""
        found: dict[str, Any] = {"layer": self.layer, "weight": self.weight if self.layer == BOTH else None}
        if self.guard is not None:
            guard = self.guard
            found["guard"] = {
                "threshold": guard.threshold,
                "softness": guard.softness,
                "blocks": list(guard.blocks),
            }
            if (middle := guard.middle) is not None:
                found["guard"]["middle"] = {"threshold": middle.threshold, "far": middle.far, "near": middle.near}
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a bundle keeps beside the tower's, by name."""
        found = {}
        if self.head is not None:
            found["skumatch_head.weight"] = self.head.weight
        if self.whiten is not None:
            found |= {"skumatch_whiten.weight": self.whiten.weight, "skumatch_whiten.bias": self.whiten.bias}
        if self.guard is not None:
            found["skumatch_guard.centres"] = self.guard.centres
            if self.guard.middle is not None:
                found["skumatch_guard.middle"] = self.guard.middle.whiten.weight
            found |= {f"skumatch_untouched.{name}": tensor for name, tensor in self.guard.differing.items()}
        return found

    @staticmethod
    def restore(settings: dict[str, Any], state: dict[str, Tensor]) -> Served:
        """Build it from ``settings`` and take its tensors out of ``state``. Raises KeyError for what is missing."""
        layer: Layer = settings["layer"]
        head = None if layer == FEATURES else _linear(state.pop("skumatch_head.weight"))
        whiten = None
        if "skumatch_whiten.weight" in state:
            whiten = _linear(state.pop("skumatch_whiten.weight"), state.pop("skumatch_whiten.bias"))
        guard = _guard(settings["guard"], state) if settings.get("guard") else None
        return Served(layer, head, 0.5 if settings.get("weight") is None else settings["weight"], whiten, guard)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight.data.copy_(weight)
    if bias is not None:
        made.bias.data.copy_(bias)
    return made.requires_grad_(False)


def _guard(settings: dict[str, Any], state: dict[str, Tensor]) -> Guard:
    prefix = "skumatch_untouched."
    differing = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    centres = state.pop("skumatch_guard.centres")
    how, middle = settings.get("middle"), None
    if how:
        middle = Middle(_linear(state.pop("skumatch_guard.middle")), how["threshold"], how["far"], how["near"])
    return Guard(centres, settings["threshold"], settings["softness"], differing, tuple(settings["blocks"]), middle)
