"""Sub-centre ArcFace on the training head, and the plain softmax that it must beat.

Deng et al., "Sub-center ArcFace" (ECCV 2020), over Deng et al., "ArcFace" (CVPR 2019); adaptive margins as in Ha et
al., "Google Landmark Recognition 2020 competition third place solution" (2020). Knows nothing about pictures.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch.finetune.objectives.base import Objective, Seen
from skumatch.finetune.parts import ArcFace as Settings
from skumatch.finetune.parts import Softmax as SoftmaxSettings
from skumatch.spec import Ids

EDGE = 1e-6  # cosines stay this far from 1: the square root's gradient is infinite there


class Prototypes(nn.Module):
    """``sub_centres`` unit vectors per SKU, the nearest of which counts."""

    def __init__(self, skus: int, dim: int, sub_centres: int = 1) -> None:
        super().__init__()
        self.sub_centres = sub_centres
        self.weight = nn.Parameter(torch.empty(skus * sub_centres, dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map float (N, D), any length, to (N, SKUs) cosines with each SKU's nearest sub-centre."""
        every = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
        return every.view(len(every), -1, self.sub_centres).amax(dim=2)


class SubCentreArcFace(Objective):
    """Cross-entropy over s * cos(theta + m) for the own SKU and s * cos(theta) for the others.

    With ``label_smoothing`` e the target is 1 - e + e / SKUs for the own SKU and e / SKUs for each other.
    """

    margins: Tensor

    def __init__(self, counts: Ids, dim: int, how: Settings) -> None:
        super().__init__()
        self.how = how
        self.prototypes = Prototypes(len(counts), dim, how.sub_centres)
        self.register_buffer("margins", torch.from_numpy(adaptive_margins(counts, how)), persistent=False)

    def margin(self, labels: Tensor, ramp: float) -> Tensor:
        """Return the margins (N, 1) in radians at ``ramp`` 0..1 of the way up."""
        how = self.how
        if how.margin == "adaptive":
            return self.margins[labels][:, None]
        risen = how.margin_to if how.margin == "fixed" else how.margin_from + ramp * (how.margin_to - how.margin_from)
        return torch.full((len(labels), 1), risen, device=labels.device)

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean loss.

        Past pi - m, where cos(theta + m) would rise again, the target falls on linearly (ArcFace, section 2.2).
        """
        cosines = self.prototypes(seen.embeddings).clamp(-1 + EDGE, 1 - EDGE)
        margin = self.margin(seen.labels, seen.ramp)
        own = cosines.gather(1, seen.labels[:, None])
        turned = own * torch.cos(margin) - torch.sqrt(1 - own * own) * torch.sin(margin)
        target = torch.where(own > -torch.cos(margin), turned, own - torch.sin(margin) * margin)
        logits = self.how.s * cosines.scatter(1, seen.labels[:, None], target)
        smoothing = self.how.label_smoothing
        return seen.mean(F.cross_entropy(logits, seen.labels, reduction="none", label_smoothing=smoothing))


def adaptive_margins(counts: Ids, how: Settings) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return a margin in radians per SKU, float32 (SKUs,): rare SKUs get the widest.

    margin_from + (margin_to - margin_from) * r, r being n^(-1/4) scaled to 0 for the most and 1 for the fewest of
    ``counts``; 0 for all where every SKU has as many.
    """
    rarity = np.maximum(counts, 1).astype(np.float64) ** -0.25
    spread = rarity.max() - rarity.min()
    r = (rarity - rarity.min()) / spread if spread > 0 else np.zeros_like(rarity)
    return (how.margin_from + (how.margin_to - how.margin_from) * r).astype(np.float32)


class NormalizedSoftmax(Objective):
    """Cross-entropy over s * cos(theta) with one prototype per SKU (Wang et al., "NormFace", 2017)."""

    def __init__(self, skus: int, dim: int, how: SoftmaxSettings) -> None:
        super().__init__()
        self.how = how
        self.prototypes = Prototypes(skus, dim)

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean loss."""
        logits = self.how.s * self.prototypes(seen.embeddings)
        smoothing = self.how.label_smoothing
        return seen.mean(F.cross_entropy(logits, seen.labels, reduction="none", label_smoothing=smoothing))


class LinearSoftmax(Objective):
    """Cross-entropy over a linear layer, as classifiers are trained: lengths count, and there is a bias."""

    def __init__(self, skus: int, dim: int, how: SoftmaxSettings) -> None:
        super().__init__()
        self.how = how
        self.classes = nn.Linear(dim, skus)
        nn.init.zeros_(self.classes.bias)

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean loss."""
        logits = F.linear(seen.embeddings.float(), self.classes.weight.float(), self.classes.bias.float())
        smoothing = self.how.label_smoothing
        return seen.mean(F.cross_entropy(logits, seen.labels, reduction="none", label_smoothing=smoothing))
