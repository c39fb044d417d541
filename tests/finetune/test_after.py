"""Mixes of weights, which of them is kept, and batch statistics estimated anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from skumatch.errors import ModelError
from skumatch.finetune.after import Measured, candidates, choose, mix, record, soup
from skumatch.finetune.norms import freeze_norms, has_batch_norm, reestimate
from skumatch.finetune.parts import After
from skumatch.towers.build import ModelSource, build

State = dict[str, Tensor]


def state(value: float, count: int = 1, dtype: torch.dtype = torch.float32) -> State:
    return {"w": torch.full((2, 3), value, dtype=dtype), "n": torch.tensor(count)}


def test_the_ends_of_the_way_are_exact() -> None:
    untouched, trained = {"w": torch.randn(5), "n": torch.tensor(1)}, {"w": torch.randn(5), "n": torch.tensor(7)}
    assert torch.equal(mix(untouched, trained, 1)["w"], trained["w"])
    assert torch.equal(mix(untouched, trained, 0)["w"], untouched["w"])
    mixed = mix(untouched, trained, 0.25)
    assert torch.allclose(mixed["w"], 0.75 * untouched["w"] + 0.25 * trained["w"]) and int(mixed["n"]) == 7
    beyond = mix(untouched, trained, 1.5)["w"]
    assert torch.allclose(beyond, 1.5 * trained["w"] - 0.5 * untouched["w"], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mixes_keep_their_dtype_and_share_no_memory(dtype: torch.dtype) -> None:
    untouched, trained = state(0.0, dtype=dtype), state(1.0, dtype=dtype)
    for share in (0.0, 0.5, 1.0):
        mixed = mix(untouched, trained, share)["w"]
        assert mixed.dtype == dtype and float(mixed[0, 0]) == share
        mixed.fill_(9)
    assert float(untouched["w"][0, 0]) == 0 and float(trained["w"][0, 0]) == 1


def test_a_soup_is_the_mean() -> None:
    assert torch.equal(soup([state(3.0)])["w"], state(3.0)["w"])
    found = soup([state(1.0, 1), state(2.0, 2), state(6.0, 9)])
    assert torch.equal(found["w"], torch.full((2, 3), 3.0)) and int(found["n"]) == 9


def test_two_networks_are_not_mixed() -> None:
    for other in ({"v": torch.zeros(2, 3)}, {"w": torch.zeros(3, 2), "n": torch.tensor(0)}):
        with pytest.raises(ModelError, match="two different networks"):
            mix(state(0.0), other, 0.5)
        with pytest.raises(ModelError, match="two different networks"):
            soup([state(0.0), other])


def test_candidates_begin_with_the_trained_weights() -> None:
    last = [state(1.0), state(3.0)]
    found = list(candidates(state(4.0), state(0.0), last, After(wise_ft=(0.5, 1.0), soup=2)))
    assert [(c.name, float(c.state["w"][0, 0]), c.reestimate) for c in found] == [
        ("trained", 4.0, False),
        ("soup of 2", 2.0, True),
        ("WiSE-FT 0.5", 2.0, True),
        ("soup of 2, WiSE-FT 0.5", 1.0, True),
    ]
    assert [c.name for c in candidates(state(4.0), state(0.0), last, After())] == ["trained"]
    assert [c.reestimate for c in candidates(state(4.0), state(0.0), [], After(wise_ft=(0.0,)))] == [False, False]


def answers(right: int, count: int = 200) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = np.zeros(count, bool)
    found[:right] = True
    return found


NONE = np.zeros(0, bool)


def measured(*pairs: tuple[int, int | None]) -> list[Measured]:
    return [Measured(str(n), answers(v), NONE if u is None else answers(u)) for n, (v, u) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        ([(150, None), (150, None)], 0),  # equals: the trained weights stand
        ([(150, None), (151, None), (160, None), (160, None)], 2),
        ([(150, None), (140, None)], 0),
        ([(150, 100), (149, 120)], 1),  # gains on unseen SKUs outweigh half a point
        ([(150, 100), (147, 160)], 0),  # more than a point is lost on validation
        ([(150, 100), (170, 97)], 0),  # or on the SKUs held out
        ([(150, 100), (148, 103)], 1),  # exactly a point may be lost
    ],
)
def test_the_better_is_kept_unless_it_loses_elsewhere(pairs: list[tuple[int, int | None]], kept: int) -> None:
    assert choose(measured(*pairs)) == kept


def test_what_was_tried_is_recorded() -> None:
    assert record(measured((150, None), (160, None)), 1) == [
        {"name": "0", "validation_top1": 0.75, "unseen_top1": None, "kept": False},
        {"name": "1", "validation_top1": 0.8, "unseen_top1": None, "kept": True},
    ]
    assert choose([Measured("trained", NONE, NONE)]) == 0


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.1), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def norm_of(image: nn.Sequential) -> nn.BatchNorm2d:
    norm = image[1]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def statistics(image: nn.Sequential) -> tuple[Tensor, Tensor]:
    norm = norm_of(image)
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def test_statistics_are_means_over_the_batches() -> None:
    image = small().eval()
    batches = [torch.randn(8, 3, 10, 10) * 3 + 1 for _ in range(3)]
    norm_of(image).weight.data.uniform_()
    weight = norm_of(image).weight.clone()
    reestimate(image, iter(batches))
    seen = [image[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    assert torch.allclose(statistics(image)[0], torch.stack([s.mean(1) for s in seen]).mean(0), atol=1e-5)
    assert torch.allclose(statistics(image)[1], torch.stack([s.var(1) for s in seen]).mean(0), rtol=1e-4)
    assert torch.equal(norm_of(image).weight, weight) and norm_of(image).momentum == 0.1
    assert not any(module.training for module in image.modules())
    assert norm_of(image).weight.grad is None


def test_modes_come_back_and_dropout_stays_off() -> None:
    image = small().train()
    image[2].eval()
    inside: list[bool] = []
    image[3].register_forward_pre_hook(lambda module, inputs: inside.append(bool((inputs[0] == 0).all(0).any())))
    reestimate(image, [torch.randn(4, 3, 8, 8)])
    assert inside == [False]  # nothing was dropped
    assert image.training and image[1].training and not image[2].training


def test_without_batches_nothing_changes_and_skipped_modules_keep_theirs() -> None:
    image = small().eval()
    statistics(image)[0].fill_(5)
    reestimate(image, [])
    reestimate(image, [torch.randn(4, 3, 8, 8)], [image[1]])
    assert torch.equal(statistics(image)[0], torch.full((4,), 5.0))
    reestimate(image, [torch.randn(4, 3, 8, 8)], [nn.Sequential(nn.Linear(2, 2))])
    assert float(statistics(image)[0].abs().max()) < 2


def test_an_error_on_the_way_leaves_momentum_and_modes() -> None:
    image = small().train()
    with pytest.raises(RuntimeError):
        reestimate(image, [torch.randn(2, 5, 8, 8)])
    assert image.training and norm_of(image).momentum == 0.1


def test_norms_of_timm_are_known() -> None:
    tower = build(ModelSource("timm:test_efficientnet", random_init=True, size=32))
    assert has_batch_norm(tower.image) and not has_batch_norm(nn.Sequential(nn.LayerNorm(4)))
    tower.image.train()
    freeze_norms(tower.image)
    before = {k: v.clone() for k, v in tower.image.state_dict().items() if "running" in k}
    tower.image(torch.randn(4, 3, 32, 32))
    assert before and all(torch.equal(v, before[k]) for k, v in tower.image.state_dict().items() if k in before)
    reestimate(tower.image, [torch.randn(4, 3, 32, 32)])
    after = tower.image.state_dict()
    assert not any(torch.equal(after[k], v) for k, v in before.items())
    assert all(math.isfinite(float(after[k].sum())) for k in before)
