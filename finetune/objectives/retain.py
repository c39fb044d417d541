"""Stay near the untouched encoder: Jung et al., "Less-forgetting learning in deep neural networks" (2016)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from skumatch.finetune.objectives.base import Objective, Seen
from skumatch.finetune.objectives.teacher import untouched
from skumatch.towers.base import Tower


class Retain(Objective):
    """1 - cosine between the features and those that the untouched encoder gives of the same pictures."""

    def __init__(self, tower: Tower, device: torch.device) -> None:
        super().__init__()
        self.teacher = untouched(tower, device)

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean loss; 0, without asking the teacher, where the features are not trained."""
        if not seen.features.requires_grad:
            return seen.features.new_zeros(())
        wanted = self.teacher.features(seen.pictures)
        return seen.mean(1 - F.cosine_similarity(seen.features.float(), wanted, dim=1))
