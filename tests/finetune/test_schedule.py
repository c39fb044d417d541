"""Learning rate, margin and picture size over a fine-tune."""

from __future__ import annotations

import pytest

from skumatch.errors import ConfigError
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.schedule import Schedule

RECIPE = Recipe(epochs=10, head_epochs=2, warmup=0.2, margin_from=0.1, margin_to=0.5, scale_from=0.5, scale_to=1.0)
STEPS = 20


def factors(stage: range) -> list[float]:
    schedule = Schedule(RECIPE, STEPS)
    return [schedule.lr_factor(epoch, step) for epoch in stage for step in range(STEPS)]


@pytest.mark.parametrize("stage", [range(2), range(2, 12)])
def test_the_rate_warms_up_and_then_falls_to_a_hundredth_in_each_stage(stage: range) -> None:
    found = factors(stage)
    warm = round(len(found) * 0.2)
    assert found[0] == pytest.approx(1 / warm)
    assert found[:warm] == sorted(found[:warm])
    assert found[warm - 1] == found[warm] == 1.0
    assert found[warm:] == sorted(found[warm:], reverse=True)
    assert 0.01 <= found[-1] < 0.02


def test_the_cosine_is_half_way_in_the_middle() -> None:
    schedule = Schedule(Recipe(epochs=1, head_epochs=0, warmup=0), 101)
    assert schedule.lr_factor(0, 51) == pytest.approx(0.01 + 0.99 * 0.5, abs=1e-6)


def test_a_single_step_has_the_full_rate() -> None:
    assert Schedule(Recipe(epochs=1, head_epochs=0), 1).lr_factor(0, 0) == 1.0


def test_the_margin_waits_for_stage_2_and_rises_over_its_first_half() -> None:
    schedule = Schedule(RECIPE, STEPS)
    assert schedule.margin(0, 0) == schedule.margin(1, STEPS - 1) == schedule.margin(2, 0) == 0.1
    assert schedule.margin(4, STEPS // 2) == pytest.approx(0.3)
    assert schedule.margin(7, 0) == schedule.margin(11, STEPS - 1) == pytest.approx(0.5)


def test_sizes_grow_in_multiples_of_32() -> None:
    schedule = Schedule(RECIPE, STEPS)
    sizes = [schedule.size(epoch, 224, True) for epoch in range(schedule.epochs)]
    assert sizes == sorted(sizes)
    assert sizes[0] == sizes[2] == 128
    assert sizes[-1] == 224
    assert all(size % 32 == 0 for size in sizes)


def test_pictures_are_never_smaller_than_the_grid() -> None:
    assert Schedule(RECIPE, STEPS).size(0, 32, True) == 32


def test_an_encoder_with_a_fixed_size_keeps_it() -> None:
    schedule = Schedule(RECIPE, STEPS)
    assert {schedule.size(epoch, 224, False) for epoch in range(schedule.epochs)} == {224}
    with pytest.raises(ConfigError, match="this encoder takes 224 px only"):
        Schedule(Recipe(size=128), STEPS).size(0, 224, False)
    assert Schedule(Recipe(size=224), STEPS).size(0, 224, False) == 224


def test_a_size_that_is_asked_for_holds_throughout() -> None:
    schedule = Schedule(Recipe(size=100), STEPS)
    assert {schedule.size(epoch, 224, True) for epoch in range(schedule.epochs)} == {100}


def test_the_stages_follow_one_another() -> None:
    schedule = Schedule(RECIPE, STEPS)
    assert schedule.epochs == 12
    assert [schedule.head_only(epoch) for epoch in range(4)] == [True, True, False, False]
