"""Supervised contrast within a batch: Khosla et al., "Supervised contrastive learning" (NeurIPS 2020), L_out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch.finetune.objectives.base import Objective, Seen
from skumatch.finetune.parts import SupCon as Settings

COLDEST, WARMEST = 0.01, 1.0


class Temperature(nn.Module):
    """A temperature in 0.01..1, kept as its logarithm and learned unless ``learn`` is off."""

    def __init__(self, start: float, learn: bool) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)), requires_grad=learn)

    def forward(self) -> Tensor:
        """Return the temperature, a scalar."""
        return self.log.clamp(math.log(COLDEST), math.log(WARMEST)).exp()


class SupCon(Objective):
    """Every picture of the same SKU in the batch attracts, every other repels, by cosine over the temperature."""

    def __init__(self, how: Settings) -> None:
        super().__init__()
        self.temperature = Temperature(how.temperature, how.learn)

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean over anchors that have a positive, in any process; 0 where none has."""
        rows = F.normalize(seen.embeddings.float(), dim=1)
        every, labels = seen.gather(rows), seen.gather(seen.labels)
        own = torch.zeros(len(rows), len(every), dtype=torch.bool, device=rows.device)
        own.diagonal(seen.start).fill_(True)
        logits = (rows @ every.T / self.temperature()).masked_fill(own, -torch.inf)
        log_share = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(own, 0.0)
        positive = (seen.labels[:, None] == labels[None]) & ~own
        count = positive.sum(1)
        per_anchor = -(log_share * positive).sum(1) / count.clamp(min=1)
        sizes = torch.bincount(labels)
        anchors = (sizes[labels] > 1).sum()
        loss: Tensor = (per_anchor * (count > 0)).sum() / anchors.clamp(min=1)
        return loss
