"""Learning rates: known points, torch's own schedules, and what holds for all of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.training.recipe import ScheduleRecipe
from annotary.training.schedules import CYCLE_PEAK, ROOT_SAMPLES, Schedule

KINDS = ("cosine", "one-cycle", "inverse-square-root", "constant")


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (0, 0.0),
        (5_000, 2e-3),
        (10_000, 4e-3),
        (10_000 + 30_000, 0.5 * 4e-3 * (1 + math.cos(math.pi / 3))),
        (10_000 + 45_000, 2e-3),
        (100_000, 0.0),
        (200_000, 0.0),
    ],
)
def test_cosine_at_known_points(samples: int, expected: float) -> None:
    schedule = Schedule(ScheduleRecipe("cosine", warm_up=10_000), 4e-3, 100_000)
    assert schedule(samples) == pytest.approx(expected, abs=1e-15)


def test_cosine_without_a_warm_up_begins_at_its_highest_and_ends_at_its_lowest() -> None:
    schedule = Schedule(ScheduleRecipe("cosine", minimum_ratio=0.1), 4e-3, 220_000_000)
    assert schedule(0) == 4e-3
    assert schedule(110_000_000) == pytest.approx(4e-3 * 0.55)
    assert schedule(220_000_000) == pytest.approx(4e-4)


def test_inverse_square_root_falls_by_half_in_four_times_the_warm_up() -> None:
    schedule = Schedule(ScheduleRecipe("inverse-square-root", warm_up=100), 1.0, 100_000)
    assert [schedule(at) for at in (50, 100, 400, 1600, 100_000)] == pytest.approx(
        [0.5, 1.0, 0.5, 0.25, math.sqrt(1 / 1000)]
    )
    floor = Schedule(
        ScheduleRecipe("inverse-square-root", warm_up=100, minimum_ratio=0.2), 1.0, 100_000
    )
    assert floor(100_000) == 0.2
    plain = Schedule(ScheduleRecipe("inverse-square-root"), 1.0, 100_000)
    assert [plain(at) for at in (0, 3 * ROOT_SAMPLES)] == [1.0, 0.5]


def test_constant_stays_after_its_warm_up() -> None:
    schedule = Schedule(ScheduleRecipe("constant", warm_up=4), 3.0, 10)
    assert [schedule(at) for at in (0, 1, 4, 9, 10, 11)] == [0.0, 0.75, 3.0, 3.0, 3.0, 3.0]


def _torch_rates(make, steps: int) -> list[float]:
    torch = pytest.importorskip("torch")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = make(torch.optim.lr_scheduler, optimiser)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


def test_one_cycle_is_torch_s() -> None:
    steps = 41
    rates = _torch_rates(
        lambda kinds, optimiser: kinds.OneCycleLR(
            optimiser, 0.5, total_steps=steps, pct_start=13 / steps, final_div_factor=4
        ),
        steps,
    )
    # torch counts the last step as the end, and the peak from 1.
    schedule = Schedule(
        ScheduleRecipe("one-cycle", warm_up=12, minimum_ratio=1 / 100), 0.5, steps - 1
    )
    assert [schedule(step) for step in range(steps)] == pytest.approx(rates, rel=1e-12)


def test_cosine_is_torch_s() -> None:
    rates = _torch_rates(
        lambda kinds, optimiser: kinds.CosineAnnealingLR(optimiser, 30, eta_min=0.05), 31
    )
    schedule = Schedule(ScheduleRecipe("cosine", minimum_ratio=0.1), 0.5, 30)
    assert [schedule(step) for step in range(31)] == pytest.approx(rates, rel=1e-9)


def test_one_cycle_has_its_peak_after_three_tenths() -> None:
    schedule = Schedule(ScheduleRecipe("one-cycle"), 1.0, 1000)
    assert schedule(0) == pytest.approx(0.04)
    assert max(range(1001), key=schedule) == 1000 * CYCLE_PEAK
    assert schedule(300) == 1.0
    assert schedule(1000) == pytest.approx(0.0, abs=1e-15)


@given(
    st.sampled_from(KINDS),
    st.integers(1, 10**9),
    st.floats(0, 0.9),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_curves_are_continuous_rise_once_and_stay_in_range(
    kind: str, total: int, rise: float, lowest: float, place: float
) -> None:
    warm_up = int(rise * total)
    schedule = Schedule(ScheduleRecipe(kind, warm_up, lowest), 2.0, total)  # type: ignore[arg-type]
    at = int(place * total)
    peak = warm_up or (CYCLE_PEAK * total if kind == "one-cycle" else 0)
    here, after = schedule(at), schedule(at + 1)
    assert 0.0 <= here <= 2.0 + 1e-12
    if at + 1 <= peak:
        assert after >= here - 1e-12
    elif at >= peak:
        assert after <= here + 1e-12
        assert here >= 2.0 * lowest - 1e-12
    # No step is larger than that of the steepest line in the curve.
    falling = total - peak
    steepest = 2.0 * math.pi / 2 * max(1 / max(peak, 1), 1 / max(falling, 1))
    if kind == "inverse-square-root":
        steepest = max(steepest, 1.0 / (peak or ROOT_SAMPLES))
    assert abs(after - here) <= steepest + 1e-9
    assert schedule(total) == schedule(total + 10**6)


def test_what_cannot_be_is_refused() -> None:
    recipe = ScheduleRecipe(warm_up=10)
    with pytest.raises(ValueError, match=r"schedule\.warm_up 10 must be below the run's 10"):
        Schedule(recipe, 1.0, 10)
    with pytest.raises(ValueError, match="samples and a learning rate above 0"):
        Schedule(ScheduleRecipe(), 0.0, 10)
    with pytest.raises(ValueError, match="samples and a learning rate above 0"):
        Schedule(ScheduleRecipe(), 1.0, 0)
    with pytest.raises(ValueError, match="0 or more"):
        Schedule(recipe, 1.0, 20)(-1)
