"""Pictures against titles: CLIP's contrast with soft targets, so that crops of one product never repel each other.

Radford et al., "Learning transferable visual models from natural language supervision" (2021), with the targets of
Yang et al., "Unified contrastive learning in image-text-label space" (CVPR 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch.errors import ModelError
from skumatch.finetune.objectives.base import Objective, Seen, Setting
from skumatch.finetune.objectives.supcon import Temperature
from skumatch.towers.base import TextTower, Tower

TEMPLATE_DRAW = 64
TOKENISED = 1_000_000  # titles times templates that are kept as ids; beyond, titles are tokenised per batch


class Clip(Objective):
    """Image-text contrast on the features, which share the text tower's space."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        how = setting.recipe.clip
        self.text = _text(setting.tower)
        self.templates, self.train_text = how.templates, how.train_text
        self.temperature = Temperature(how.temperature, how.learn)
        unique = sorted(set(setting.titles))
        place = {title: number for number, title in enumerate(unique)}
        self.titles = unique
        self.title_of = torch.tensor([place[title] for title in setting.titles], device=setting.device)
        self.tokens = self._all_tokens(setting.device)

    def _all_tokens(self, device: torch.device) -> Tensor | None:
        if len(self.titles) * len(self.templates) > TOKENISED:
            return None
        texts = [template.replace("{}", title) for title in self.titles for template in self.templates]
        return self.text.tokenize(texts).to(device)

    def forward(self, seen: Seen) -> Tensor:
        """Return the mean of both directions.

        Each picture's target is its own title; each title's target is spread evenly over the pictures that carry it.
        A title appears once per batch, under a template that the draws of its first picture choose.
        """
        titles, column = torch.unique(seen.gather(self.title_of[seen.labels]), return_inverse=True)
        texts = F.normalize(self._encode(titles, column, seen.gather(seen.draws)).float(), dim=1)
        images = F.normalize(seen.features.float(), dim=1)
        own = column[seen.start : seen.start + len(images)]
        to_text = seen.mean(F.cross_entropy(images @ texts.T / self.temperature(), own, reduction="none"))
        mine = slice(seen.ranks.rank, None, seen.ranks.world)  # each process has its part of the titles
        logits = texts[mine] @ seen.gather(images).T / self.temperature()
        owns = F.one_hot(column, len(titles)).T[mine].float()
        to_image = -(F.log_softmax(logits, dim=1) * owns / owns.sum(1, keepdim=True)).sum() / len(titles)
        return (to_text + to_image) / 2

    def _encode(self, titles: Tensor, column: Tensor, draws: Tensor) -> Tensor:
        first = torch.zeros(len(titles), dtype=torch.long, device=column.device)
        order = torch.arange(len(column) - 1, -1, -1, device=column.device)
        first[column[order]] = order  # written backwards: the first picture of each title stays
        template = (draws[first, TEMPLATE_DRAW] * len(self.templates)).long()
        ids = self._ids(titles, template)
        with torch.set_grad_enabled(self.train_text and torch.is_grad_enabled()):
            return self.text.encode(ids)

    def _ids(self, titles: Tensor, template: Tensor) -> Tensor:
        if self.tokens is not None:
            return self.tokens[titles * len(self.templates) + template]
        pairs = zip(titles.tolist(), template.tolist(), strict=True)
        texts = [self.templates[which].replace("{}", self.titles[title]) for title, which in pairs]
        return self.text.tokenize(texts).to(titles.device)


def _text(tower: Tower) -> TextTower:
    if tower.text is None:
        raise ModelError(f"{tower.name} has no text tower", "leave out the objective clip, or choose a CLIP model")
    return tower.text


def text_parameters(tower: Tower) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the model that are not the image tower's, by name: the text tower's."""
    image = {id(parameter) for parameter in tower.image.parameters()}
    return [(name, parameter) for name, parameter in tower.model.named_parameters() if id(parameter) not in image]
