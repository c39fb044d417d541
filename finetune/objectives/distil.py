"""A larger encoder teaches: its features of the same pictures are the targets.

Cosine to the teacher's vector through a linear layer, and the batch's cosines among themselves (relational knowledge
distillation: Park et al., CVPR 2019), which need no such layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch.finetune.objectives.base import Objective, Seen
from skumatch.finetune.objectives.teacher import Frozen
from skumatch.towers.base import Tower


class Distil(Objective):
    """Follow ``teacher``, whose pictures are resized to its own size."""

    def __init__(self, dim: int, teacher: Tower, device: torch.device) -> None:
        super().__init__()
        self.teacher = Frozen(teacher.image, teacher.preprocess, device)
        self.size = teacher.preprocess.size
        self.project = nn.Linear(dim, teacher.dim)

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean of 1 - cosine, plus the mean squared difference of the whole batch's cosines."""
        features = seen.features.float()
        wanted = F.normalize(self.teacher.features(seen.pictures, self.size), dim=1)
        pointwise = seen.mean(1 - F.cosine_similarity(self.project(features), wanted, dim=1))
        own = F.normalize(features, dim=1)
        differences = own @ seen.gather(own).T - wanted @ seen.gather(wanted).T
        return pointwise + differences.square().sum() / seen.total**2
