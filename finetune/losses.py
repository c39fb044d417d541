"""Sub-centre ArcFace on a training head.

Deng et al., "Sub-center ArcFace" (ECCV 2020), over Deng et al., "ArcFace" (CVPR 2019). Knows nothing about images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SubCentreArcFace(nn.Module):
    """Cross-entropy over s * cos(theta + m) with ``sub_centres`` prototypes per SKU, the nearest of which counts."""

    def __init__(self, skus: int, dim: int, sub_centres: int, s: float) -> None:
        super().__init__()
        self.sub_centres = sub_centres
        self.s = s
        self.weight = nn.Parameter(torch.empty(skus * sub_centres, dim))
        nn.init.xavier_uniform_(self.weight)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Map float (N, D), any length, to (N, SKUs) cosines with each SKU's nearest sub-centre."""
        every = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
        return every.view(len(every), -1, self.sub_centres).amax(dim=2)

    def forward(self, embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return the mean loss of (N, D) embeddings with int64 (N,) labels at ``margin`` radians.

        Past pi - margin, where cos(theta + m) would rise again, the target falls on linearly (ArcFace, section 2.2).
        """
        cosines = self.cosines(embeddings).clamp(-1 + 1e-6, 1 - 1e-6)
        own = cosines.gather(1, labels[:, None])
        turned = own * math.cos(margin) - torch.sqrt(1 - own * own) * math.sin(margin)
        target = torch.where(own > -math.cos(margin), turned, own - math.sin(margin) * margin)
        return F.cross_entropy(self.s * cosines.scatter(1, labels[:, None], target), labels)
