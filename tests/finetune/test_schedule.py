"""Learning rate, margin and picture size over a fine-tune."""

from __future__ import annotations

import pytest

from skumatch.errors import ConfigError
from skumatch.finetune.parts import Course, Kind
from skumatch.finetune.recipe import Recipe
from skumatch.finetune.schedule import Schedule, stopped

RECIPE = Recipe(epochs=10, head_epochs=2, schedule=Course(warmup=0.2, sizes="128:4,160:4,224:2"))
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
    schedule = Schedule(Recipe(epochs=1, head_epochs=0, schedule=Course(warmup=0)), 101)
    assert schedule.lr_factor(0, 51) == pytest.approx(0.01 + 0.99 * 0.5, abs=1e-6)


def test_a_single_step_has_the_full_rate() -> None:
    assert Schedule(Recipe(epochs=1, head_epochs=0), 1).lr_factor(0, 0) == 1.0


def test_the_margin_waits_for_stage_2_and_rises_over_its_first_half() -> None:
    schedule = Schedule(RECIPE, STEPS)
    assert schedule.ramp(0, 0) == schedule.ramp(1, STEPS - 1) == schedule.ramp(2, 0) == 0.0
    assert schedule.ramp(4, STEPS // 2) == pytest.approx(0.5)
    assert schedule.ramp(7, 0) == schedule.ramp(11, STEPS - 1) == 1.0


def course(kind: Kind, **more: float) -> list[float]:
    how = Course(kind=kind, **more)  # type: ignore[arg-type]
    schedule = Schedule(Recipe(epochs=10, head_epochs=0, schedule=how), STEPS)
    return [schedule.lr_factor(epoch, step) for epoch in range(10) for step in range(STEPS)]


def test_one_cycle_rises_to_its_peak_and_ends_near_nothing() -> None:
    found = course("one-cycle", warmup=0.3)
    assert found[0] == pytest.approx(0.04) and found[60] == 1.0 == max(found)
    assert found[:61] == sorted(found[:61]) and found[60:] == sorted(found[60:], reverse=True)
    assert 0.001 <= found[-1] < 0.002


def test_restarts_begin_anew_after_each_cycle() -> None:
    found = course("restarts", warmup=0.0, cycle_len=2, cycle_mult=2.0)
    starts = [place for place in range(1, len(found)) if found[place] > found[place - 1]]
    assert starts == [2 * STEPS, 6 * STEPS]
    assert [found[place] for place in (0, *starts)] == [1.0, 1.0, 1.0]
    assert max(found[place - 1] for place in starts) < 0.02
    assert found[-1] < 0.02  # the third cycle would last eight epochs: it is cut to the four that are left


def test_only_the_first_cycle_warms_up() -> None:
    found = course("restarts", warmup=0.5, cycle_len=5)
    assert found[0] == pytest.approx(1 / 50) and found[49] == 1.0
    assert found[5 * STEPS] == 1.0 and found[5 * STEPS + 1] < 1.0


def sizes(text: str, epochs: int = 10, full: int = 224, patch: int = 1) -> list[int]:
    schedule = Schedule(Recipe(epochs=epochs, head_epochs=1, schedule=Course(sizes=text)), STEPS)
    return [schedule.size(epoch, full, True, patch) for epoch in range(epochs + 1)]


def test_sizes_follow_their_parts_and_stage_1_has_the_first() -> None:
    assert sizes("128:4,160:4,224:2") == [128] * 5 + [160] * 4 + [224] * 2
    assert sizes("128:4,160:4,224:2", epochs=5) == [128] * 3 + [160] * 2 + [224]
    assert sizes("100") == [100] * 11


def test_shares_are_rounded_to_what_the_network_takes() -> None:
    assert sizes("0.5,1")[::10] == [128, 224]  # 112 is no multiple of 32
    assert sizes("0.5,1", patch=14)[::10] == [112, 224]
    assert sizes("0.2", full=32) == [32] * 11


def test_pixels_that_a_patch_does_not_divide_are_refused() -> None:
    assert sizes("112", patch=16) == [112] * 11
    with pytest.raises(ConfigError, match="multiples of 16 px, not 100"):
        sizes("100", patch=16)


def test_an_encoder_with_a_fixed_size_keeps_it() -> None:
    for text in ("0.57,0.9", "224"):
        schedule = Schedule(Recipe(schedule=Course(sizes=text)), STEPS)
        assert {schedule.size(epoch, 224, False, 1) for epoch in range(schedule.epochs)} == {224}
    with pytest.raises(ConfigError, match="this encoder takes 224 px only"):
        Schedule(Recipe(schedule=Course(sizes="128")), STEPS).size(0, 224, False, 1)


def test_patience_counts_epochs_since_the_best() -> None:
    assert not stopped([0.5, 0.6, 0.6], 2) and stopped([0.5, 0.6, 0.6, 0.5], 2)
    assert not stopped([0.5, 0.4, 0.3, 0.6], 2)
    assert not stopped([0.5, None, None, None], 2)  # not validated is not worse
    assert not stopped([0.5] * 100, 0) and not stopped([], 1)


def test_the_stages_follow_one_another() -> None:
    schedule = Schedule(RECIPE, STEPS)
    assert schedule.epochs == 12
    assert [schedule.head_only(epoch) for epoch in range(4)] == [True, True, False, False]
