"""Objectives against references in float64 that are written out, and against pytorch-metric-learning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from skumatch.errors import ModelError
from skumatch.finetune.augment import DRAWS
from skumatch.finetune.objectives.arcface import NormalizedSoftmax, SubCentreArcFace, adaptive_margins
from skumatch.finetune.objectives.base import Objective, Seen, Setting
from skumatch.finetune.objectives.build import objectives
from skumatch.finetune.objectives.clip import TEMPLATE_DRAW, Clip, text_parameters
from skumatch.finetune.objectives.distil import Distil
from skumatch.finetune.objectives.retain import Retain
from skumatch.finetune.objectives.supcon import SupCon, Temperature
from skumatch.finetune.parts import ArcFace, Objectives, Softmax
from skumatch.finetune.parts import Clip as ClipHow
from skumatch.finetune.parts import SupCon as SupConHow
from skumatch.finetune.recipe import Recipe
from skumatch.towers.base import Tower
from skumatch.towers.build import ModelSource, build

SKUS, DIM = 5, 8
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 4])
CPU = torch.device("cpu")


def rows(count: int = len(LABELS), seed: int = 0, dim: int = DIM) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def seen(embeddings: Tensor, labels: Tensor = LABELS, ramp: float = 1.0, features: Tensor | None = None) -> Seen:
    n = len(labels)
    pictures = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 255
    draws = torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(4)).double()
    return Seen(embeddings if features is None else features, embeddings, labels, pictures, ramp, draws)


def gradients(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[float, Tensor]:
    """Return the loss at ``at`` and its gradient."""
    leaf = at.clone().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return number(value), gradient


def number(scalar: Tensor) -> float:
    return float(scalar.detach())


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.pow(2).sum(1, keepdim=True).sqrt()


def arcface_by_hand(embeddings: Tensor, weight: Tensor, how: ArcFace, margins: list[float]) -> Tensor:
    """One loss at a time, with acos and cos, in the dtype of ``embeddings``."""
    total = embeddings.new_zeros(())
    cosines = unit(embeddings) @ unit(weight).T
    for row, label in enumerate(LABELS.tolist()):
        per_sku = [
            torch.stack([cosines[row, sku * how.sub_centres + k] for k in range(how.sub_centres)]).max()
            for sku in range(SKUS)
        ]
        theta = torch.acos(per_sku[label])
        turned = theta + margins[label]
        fallen = per_sku[label] - math.sin(margins[label]) * margins[label]
        own = torch.cos(turned) if float(turned.detach()) < math.pi else fallen
        logits = torch.stack([own if sku == label else per_sku[sku] for sku in range(SKUS)]) * how.s
        share = logits - torch.logsumexp(logits, 0)
        e = how.label_smoothing
        total = total - ((1 - e) * share[label] + e * share.mean())
    return total / len(LABELS)


COUNTS = np.array([1, 4, 16, 81, 256], np.int64)


@pytest.mark.parametrize(
    "how",
    [
        ArcFace(sub_centres=1, s=10, margin="fixed", margin_to=0.3),
        ArcFace(sub_centres=3, s=24, margin="ramped", margin_from=0.05, margin_to=0.35),
        ArcFace(sub_centres=2, s=16, margin="adaptive", margin_from=0.05, margin_to=0.5),
        ArcFace(sub_centres=1, s=16, margin="fixed", margin_to=1.4, label_smoothing=0.1),
    ],
)
@pytest.mark.parametrize("ramp", [0.0, 0.4])
def test_arcface_and_its_gradients_against_float64(how: ArcFace, ramp: float) -> None:
    torch.manual_seed(1)
    loss = SubCentreArcFace(COUNTS, DIM, how)
    risen = how.margin_from + ramp * (how.margin_to - how.margin_from)
    margins = {
        "fixed": [how.margin_to] * SKUS,
        "ramped": [risen] * SKUS,
        "adaptive": [float(m) for m in adaptive_margins(COUNTS, how)],
    }[how.margin]
    weight = loss.prototypes.weight.detach()
    value, gradient = gradients(lambda x: loss(seen(x, ramp=ramp)), rows())
    wanted, reference = gradients(lambda x: arcface_by_hand(x, weight.double(), how, margins), rows().double())
    assert value == pytest.approx(wanted, rel=1e-5)
    assert torch.allclose(gradient.double(), reference, atol=1e-5)
    own = torch.autograd.grad(loss(seen(rows(), ramp=ramp)), loss.prototypes.weight)[0]
    _, by_hand = gradients(lambda w: arcface_by_hand(rows().double(), w, how, margins), weight.double())
    assert torch.allclose(own.double(), by_hand, atol=1e-5)


def test_adaptive_margins_follow_the_formula() -> None:
    found = adaptive_margins(COUNTS, ArcFace(margin="adaptive", margin_from=0.05, margin_to=0.5))
    raw = COUNTS**-0.25  # 1, .7071, .5, .3333, .25
    assert found == pytest.approx(0.05 + 0.45 * (raw - 0.25) / 0.75)
    assert found[0] == pytest.approx(0.5) and found[-1] == pytest.approx(0.05)
    assert set(adaptive_margins(np.array([7, 7]), ArcFace(margin="adaptive"))) == {np.float32(0.05)}


def test_past_the_turning_point_the_target_goes_on_falling() -> None:
    loss = SubCentreArcFace(np.array([1, 1]), 2, ArcFace(sub_centres=1, s=1, margin="fixed", margin_to=0.5))
    loss.prototypes.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angles = torch.linspace(0.0, math.pi, 200)
    with torch.no_grad():
        values = [number(loss(seen(torch.stack([a.cos(), -a.sin()])[None], torch.tensor([0])))) for a in angles]
    others = -angles.sin()  # cosine with the other prototype, which moves too: leave it out
    targets = [v - float(o) for v, o in zip(values, others, strict=True)]
    assert all(math.isfinite(value) for value in targets)
    own = torch.where(angles < math.pi - 0.5, (angles + 0.5).cos(), angles.cos() - math.sin(0.5) * 0.5)
    assert (own[1:] <= own[:-1] + 1e-6).all()
    expected = torch.logsumexp(torch.stack([own, -angles.sin()]), 0) - own
    assert torch.allclose(torch.tensor(values), expected, atol=2e-3)  # cosines stay 1e-6 from 1


def oracle(name: str, weight: Tensor, **settings: float) -> Callable[[Tensor], Tensor]:
    """Return a loss of pytorch-metric-learning with ``weight`` (D, SKUs) as its prototypes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning import losses
    made = getattr(losses, name)(num_classes=SKUS, embedding_size=DIM, **settings)
    made.W.data = weight.clone()
    return lambda x: made(x, LABELS)


def test_arcface_agrees_with_pytorch_metric_learning() -> None:
    how = ArcFace(sub_centres=1, s=20, margin="fixed", margin_to=0.4)
    loss = SubCentreArcFace(np.ones(SKUS, np.int64), DIM, how)
    other = oracle("ArcFaceLoss", loss.prototypes.weight.detach().T, margin=math.degrees(0.4), scale=20)
    mine, theirs = (gradients(one, rows()) for one in (lambda x: loss(seen(x)), other))
    assert mine[0] == pytest.approx(theirs[0], rel=1e-4)
    assert torch.allclose(mine[1], theirs[1], atol=1e-4)


def test_sub_centres_agree_with_pytorch_metric_learning() -> None:
    how = ArcFace(sub_centres=3, s=20, margin="fixed", margin_to=0.4)
    loss = SubCentreArcFace(np.ones(SKUS, np.int64), DIM, how)
    weight = loss.prototypes.weight.detach().T
    other = oracle("SubCenterArcFaceLoss", weight, margin=math.degrees(0.4), scale=20, sub_centers=3)
    assert number(loss(seen(rows()))) == pytest.approx(number(other(rows())), rel=1e-4)


def test_softmax_agrees_with_pytorch_metric_learning() -> None:
    loss = NormalizedSoftmax(SKUS, DIM, Softmax(s=20))
    other = oracle("NormalizedSoftmaxLoss", unit(loss.prototypes.weight.detach()).T, temperature=1 / 20)
    mine, theirs = (gradients(one, rows()) for one in (lambda x: loss(seen(x)), other))
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
    assert torch.allclose(mine[1], theirs[1], atol=1e-5)


def test_arcface_without_margin_is_the_softmax() -> None:
    plain = NormalizedSoftmax(SKUS, DIM, Softmax(s=24))
    arc = SubCentreArcFace(np.ones(SKUS, np.int64), DIM, ArcFace(sub_centres=1, margin="fixed", margin_to=0.0))
    arc.prototypes.weight.data = plain.prototypes.weight.data.clone()
    assert number(arc(seen(rows()))) == pytest.approx(number(plain(seen(rows()))), rel=1e-5)


def supcon_by_hand(embeddings: Tensor, temperature: float) -> Tensor:
    """Equation 2 of the paper (L_out), anchor by anchor."""
    z, losses = unit(embeddings), []
    for i, label in enumerate(LABELS.tolist()):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if int(LABELS[p]) == label]
        if positives:
            below = torch.logsumexp(torch.stack([z[i] @ z[a] / temperature for a in others]), 0)
            losses.append(-torch.stack([z[i] @ z[p] / temperature - below for p in positives]).mean())
    return torch.stack(losses).mean()


def test_supcon_and_its_gradients_against_float64_and_the_oracle() -> None:
    loss = SupCon(SupConHow(temperature=0.2))
    value, gradient = gradients(lambda x: loss(seen(x)), rows())
    wanted, reference = gradients(lambda x: supcon_by_hand(x, 0.2), rows().double())
    assert value == pytest.approx(wanted, rel=1e-5)
    assert torch.allclose(gradient.double(), reference, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning import losses, reducers
    other = losses.SupConLoss(temperature=0.2, reducer=reducers.MeanReducer())
    anchors = sum(int((label == LABELS).sum() > 1) for label in LABELS)
    # The oracle averages over all rows, those without a positive counting 0.
    assert number(other(rows(), LABELS)) == pytest.approx(value * anchors / len(LABELS), rel=1e-4)


def test_supcon_learns_its_temperature_within_bounds() -> None:
    loss = SupCon(SupConHow(temperature=0.1))
    loss(seen(rows())).backward()
    assert loss.temperature.log.grad is not None and number(loss.temperature.log.grad) != 0
    assert not Temperature(0.1, learn=False).log.requires_grad
    for raw, held in ((-100.0, 0.01), (100.0, 1.0), (math.log(0.3), 0.3)):
        temperature = Temperature(0.1, True)
        temperature.log.data.fill_(raw)
        assert number(temperature()) == pytest.approx(held, rel=1e-5)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2]), torch.tensor([3])])
def test_supcon_without_positives_is_nothing_with_a_gradient(labels: Tensor) -> None:
    value, gradient = gradients(lambda x: SupCon(SupConHow())(seen(x, labels)), rows(len(labels)))
    assert value == 0 and torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
@pytest.mark.parametrize(
    "make",
    [
        lambda: SubCentreArcFace(np.ones(SKUS, np.int64), DIM, ArcFace()),
        lambda: NormalizedSoftmax(SKUS, DIM, Softmax()),
        lambda: SupCon(SupConHow()),
    ],
)
def test_extreme_embeddings_stay_finite(make: Callable[[], Objective], scale: float) -> None:
    loss = make()
    value, gradient = gradients(lambda x: loss(seen(x)), rows() * scale)
    assert math.isfinite(value) and (scale == 1e-20 or bool(gradient.isfinite().all()))
    aligned = torch.eye(DIM)[LABELS % DIM]
    assert math.isfinite(number(loss(seen(aligned)))) and math.isfinite(number(loss(seen(aligned.bfloat16()))))


TINY = "open_clip:skumatch-tiny-96"
TITLES = ("cola can", "cola bottle", "cola can", "tea box", "soap")  # SKUs 0 and 2 are sold under one title


@pytest.fixture(scope="module")
def clip_tower() -> Tower:
    return build(ModelSource(TINY, random_init=True))


def setting(tower: Tower, recipe: Recipe | None = None) -> Setting:
    recipe = recipe or Recipe(objectives=Objectives(clip=1.0), clip=ClipHow(templates=("{}",)))
    return Setting(recipe, np.ones(SKUS, np.int64), TITLES, tower, CPU)


def test_clip_spreads_its_targets_over_pictures_of_one_title(clip_tower: Tower) -> None:
    loss = Clip(setting(clip_tower))
    features = rows(dim=clip_tower.dim)
    value, gradient = gradients(lambda x: loss(seen(x, features=x)), features)
    text = clip_tower.text
    assert text is not None
    with torch.no_grad():
        written = {title: unit(text.encode(text.tokenize([title])))[0].double() for title in set(TITLES)}

    def by_hand(x: Tensor) -> Tensor:
        images, titles = unit(x), [TITLES[label] for label in LABELS.tolist()]
        present = sorted(set(titles))
        logits = torch.stack([torch.stack([image @ written[t] / 0.07 for t in present]) for image in images])
        to_text = torch.stack(
            [torch.logsumexp(row, 0) - row[present.index(t)] for row, t in zip(logits, titles, strict=True)]
        )
        to_image = []
        for column, title in enumerate(present):
            scores = logits[:, column]
            own = [i for i, t in enumerate(titles) if t == title]
            to_image.append(torch.logsumexp(scores, 0) - torch.stack([scores[i] for i in own]).mean())
        return (to_text.mean() + torch.stack(to_image).mean()) / 2

    wanted, reference = gradients(by_hand, features.double())
    assert value == pytest.approx(wanted, rel=1e-4)
    assert torch.allclose(gradient.double(), reference, atol=1e-4)


def test_crops_of_one_title_never_repel_each_other(clip_tower: Tower) -> None:
    """SKUs 0 and 2 alone: whatever the pictures, there is one text, and nothing to tell apart."""
    loss = Clip(setting(clip_tower))
    features = torch.ones(2, clip_tower.dim)
    assert number(loss(seen(features, torch.tensor([0, 2]), features=features))) == pytest.approx(math.log(2) / 2)


def test_the_text_tower_learns_where_asked(clip_tower: Tower) -> None:
    features = rows(dim=clip_tower.dim)
    for train in (True, False):
        recipe = Recipe(embedding=DIM, objectives=Objectives(clip=1.0), clip=ClipHow(train_text=train))
        total = objectives(setting(clip_tower, recipe))
        named = dict(text_parameters(clip_tower))
        assert named and not any(id(p) in {id(q) for q in clip_tower.image.parameters()} for p in named.values())
        groups = total.parameter_groups(1e-3)
        optimised = {id(p) for group in groups for p in group["params"]}
        assert ({id(p) for p in named.values()} <= optimised) == train
        assert not any("text" in name for name in total.state_dict())
        loss, parts = total(seen(rows(), features=features))
        loss.backward()
        learned = [p for p in named.values() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
        assert bool(learned) == train and set(parts) == {"arcface", "clip"}
        for parameter in named.values():
            parameter.grad = None


def test_templates_are_drawn_per_picture_and_step(clip_tower: Tower) -> None:
    recipe = Recipe(objectives=Objectives(clip=1.0), clip=ClipHow(templates=("{}", "a photo of {}"), train_text=False))
    loss, features = Clip(setting(clip_tower, recipe)), rows(dim=clip_tower.dim)
    values = set()
    for draw in (0.0, 0.999):
        batch = seen(rows(), features=features)
        batch.draws[:, TEMPLATE_DRAW] = draw
        values.add(round(number(loss(batch)), 6))
    assert len(values) == 2


def test_an_encoder_without_texts_is_refused() -> None:
    tower = build(ModelSource("timm:test_efficientnet", random_init=True, size=32))
    with pytest.raises(ModelError, match="has no text tower - leave out the objective clip"):
        objectives(setting(tower))


@pytest.fixture(scope="module")
def small() -> Tower:
    tower = build(ModelSource("timm:test_efficientnet", random_init=True, size=32))
    tower.image.eval()
    return tower


def test_retain_is_nothing_at_first_and_pulls_back(small: Tower) -> None:
    loss = Retain(small, CPU)
    batch = seen(rows())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (small.preprocess.mean, small.preprocess.std))
    before = small.image((batch.pictures - mean) / std).detach()
    assert number(loss(seen(rows(), features=before.requires_grad_()))) == pytest.approx(0, abs=1e-6)
    moved = (before.detach() + 0.3 * rows(dim=before.shape[1])).requires_grad_()
    value, gradient = gradients(lambda x: loss(seen(rows(), features=x)), moved.detach())
    assert value == pytest.approx(number((1 - (unit(moved) * unit(before)).sum(1)).mean().detach()), rel=1e-4)
    nearer = moved.detach() - 0.5 * gradient / gradient.norm()
    assert number(loss(seen(rows(), features=nearer.requires_grad_()))) < value
    assert not loss.state_dict() and not list(loss.parameters())
    assert number(loss(seen(rows(), features=moved.detach()))) == 0  # stage 1: nothing to hold back


def test_distil_follows_a_teacher_of_another_size_and_width(small: Tower) -> None:
    teacher = build(ModelSource("timm:test_resnet", random_init=True, size=48))
    loss = Distil(small.dim, teacher, CPU)
    assert set(loss.state_dict()) == {"project.weight", "project.bias"}
    features = rows(dim=small.dim).requires_grad_()
    optimizer = torch.optim.Adam([features, *loss.parameters()], lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(seen(rows(), features=features))
        value.backward()
        optimizer.step()
        values.append(number(value.detach()))
    assert values[-1] < 0.3 * values[0]
    assert all(p.grad is None for p in teacher.image.parameters())


def test_the_sum_is_weighted_and_its_parts_are_not(small: Tower) -> None:
    recipe = Recipe(embedding=DIM, objectives=Objectives(arcface=2.0, softmax=0.0, supcon=0.5))
    total = objectives(Setting(recipe, np.ones(SKUS, np.int64), TITLES, small, CPU))
    value, parts = total(seen(rows()))
    assert set(parts) == {"arcface", "supcon"} and not parts["arcface"].requires_grad
    assert number(value) == pytest.approx(2 * number(parts["arcface"]) + 0.5 * number(parts["supcon"]), rel=1e-5)
    (group,) = total.parameter_groups(0.1)
    assert group["lr"] == 0.1 and group["weight_decay"] == 0 and len(group["params"]) == 2
