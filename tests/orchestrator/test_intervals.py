"""Intervals that hold what they promise, and places on a front that are certain or not."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.intervals import Measured, estimate, is_as_dense, is_right

CLIPS, SEEDS = 400, 3
RNG = np.random.default_rng(7)


def point(accuracy: float, cost: float, seeds: int = SEEDS) -> Measured:
    gain_SN = RNG.random((seeds, CLIPS)) < accuracy
    return Measured(gain_SN, np.full((seeds, CLIPS), cost))


def test_a_mean_lies_in_its_interval_and_stays_when_drawn_again() -> None:
    one = point(0.8, 1.0)
    (first,), (again,) = estimate([one]), estimate([one])
    assert first == again
    assert first.gain.low < first.gain.mean < first.gain.high
    assert first.gain.mean == pytest.approx(one.gain_SN.mean())
    assert first.by_seed == pytest.approx(one.gain_SN.mean(axis=1))
    assert (first.cost.low, first.cost.mean, first.cost.high) == (1, 1, 1)


def test_a_point_that_is_beaten_in_both_is_not_on_the_front() -> None:
    good, bad, dear = estimate([point(0.9, 1.0), point(0.6, 2.0), point(0.99, 3.0)])
    assert (good.on_front, bad.on_front, dear.on_front) == (1, 0, 1)
    assert good.is_certain
    assert not bad.is_certain


def test_equal_points_beat_nobody() -> None:
    one = point(0.8, 1.0)
    assert [found.on_front for found in estimate([one, one])] == [1, 1]
    alone, dearer = estimate([one, Measured(one.gain_SN, one.cost_SN + 1)])
    assert (alone.on_front, dearer.on_front) == (1, 0)


def test_a_dearer_point_that_is_hardly_better_is_not_certain() -> None:
    cheap = point(0.8, 1.0)
    gain_SN = cheap.gain_SN.copy()
    gain_SN[:, :4] |= True
    gain_SN[:, 4:6] = False
    first, second = estimate([cheap, Measured(gain_SN, cheap.cost_SN + 1)])
    assert first.is_certain
    assert 0.05 < second.on_front < 0.95


def test_what_points_share_does_not_blur_which_is_better() -> None:
    """Of 400 clips 20 differ, all in favour of the dearer one: paired, that is beyond doubt."""
    cheap = point(0.7, 1.0)
    gain_SN = cheap.gain_SN.copy()
    wrong = np.flatnonzero(~gain_SN.any(axis=0))[:5]
    gain_SN[:, wrong] = True
    first, second = estimate([cheap, Measured(gain_SN, cheap.cost_SN + 1)])
    assert first.gain.high > second.gain.low  # the intervals overlap
    assert second.is_certain


def test_one_row_counts_in_all_seeds() -> None:
    several, one = point(0.8, 2.0), point(0.7, 1.0, seeds=1)
    found = estimate([several, one])
    assert found[1].by_seed == (one.gain_SN.mean(),)
    alone = estimate([one])[0].gain
    assert found[1].gain.low == pytest.approx(alone.low, abs=0.01)


def test_costs_that_vary_with_the_clip_have_an_interval() -> None:
    cost_SN = np.tile(RNG.random(CLIPS), (SEEDS, 1))
    (found,) = estimate([Measured(point(0.8, 1.0).gain_SN, cost_SN)])
    assert found.cost.low < found.cost.mean < found.cost.high


@pytest.mark.parametrize(("seeds", "by_seed"), [(1, 0.0), (3, 0.0), (3, 0.15), (5, 0.3)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int, by_seed: float) -> None:
    """Accuracies that vary with the clip and with the seed: 95 %, less what 300 trials may miss."""
    rng = np.random.default_rng(1)
    deviates = rng.normal(size=200_000)
    truth = (1 / (1 + np.exp(-1.5 - np.hypot(2.0, by_seed) * deviates))).mean()
    held = 0
    for _ in range(300):
        odds_SN = 1.5 + rng.normal(0, 2, (1, 150)) + rng.normal(0, by_seed, (seeds, 1))
        gain_SN = rng.random((seeds, 150)) < 1 / (1 + np.exp(-odds_SN))
        (found,) = estimate([Measured(gain_SN, np.ones_like(odds_SN))], draws=300)
        held += found.gain.low <= truth <= found.gain.high
    assert held >= 0.92 * 300


def test_right_and_as_dense_are_told_clip_by_clip() -> None:
    logits_NK = np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, 1.0]])
    answers = {"logits": logits_NK, "label": np.array([0, 0, 1])}
    dense = {"logits": np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])}
    assert is_right(answers, dense).tolist() == [True, False, False]
    assert is_as_dense(answers, dense).tolist() == [False, True, False]
