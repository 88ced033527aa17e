"""How sure a confirmed figure is: intervals, and the chance that a point lies on the front.

A paired bootstrap on two levels. Each draw takes clips with replacement and, of n seeds, n - 1 with
replacement: with as many as there are, so few would vary too little (Rao and Wu, 1988). All points
get the same clips and seeds in a draw, so that what they have in common does not blur which of them
is better. Where a clip's answer varies with the seed for no reason of clip or seed, a draw counts
that more than once (Owen, 2007): intervals are rather too wide than too narrow.

A point without seeds of its own (nothing in it is trained or drawn) has one row, and counts as the
same in all of them.

Legend: S seeds, N clips, D draws, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95
CERTAIN = 0.95
"""Chance from which on a place on the front counts as certain."""

Answers = dict[str, np.ndarray]
"""Of an evaluation: `label` (N,), `logits` (N, classes), and `gmacs` (N,)."""


def is_right(answers: Answers, dense: Answers) -> np.ndarray:
    """Return whether each clip got its label, (N,); a logit that is no number is no answer."""
    logits_NK = answers["logits"]
    right_N: np.ndarray = logits_NK.argmax(axis=1) == answers["label"]
    return right_N & ~np.isnan(logits_NK).any(axis=1)


def is_as_dense(answers: Answers, dense: Answers) -> np.ndarray:
    """Return whether each clip got the label that the dense model gave it, (N,)."""
    logits_NK, dense_NK = answers["logits"], dense["logits"]
    same_N: np.ndarray = logits_NK.argmax(axis=1) == dense_NK.argmax(axis=1)
    return same_N & ~np.isnan(logits_NK).any(axis=1) & ~np.isnan(dense_NK).any(axis=1)


GAINS: dict[str, Callable[[Answers, Answers], np.ndarray]] = {
    "top1": is_right,
    "agreement": is_as_dense,
}
"""What an objective to raise counts: from a point's answers and the dense model's, by its name."""


@dataclass(frozen=True)
class Measured:
    """What a point did with each clip, under each seed."""

    gain_SN: np.ndarray
    cost_SN: np.ndarray


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with the chance `LEVEL`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """What is known of a point."""

    gain: Interval
    cost: Interval
    by_seed: tuple[float, ...]
    """Gain under each seed."""
    on_front: float
    """Share of the draws in which no other point beats it."""

    @property
    def is_certain(self) -> bool:
        """Whether its place on the front is."""
        return self.on_front >= CERTAIN


def estimate(points: Sequence[Measured], draws: int = DRAWS, seed: int = 0) -> list[Estimate]:
    """Return what is known of each point.

    Args:
        points: of the same clips in the same order, and of the same seeds, or of one row.
        draws: of the bootstrap.
        seed: of its draws.
    """
    num_seeds = max(len(point.gain_SN) for point in points)
    clip_DN, seed_DS = _weights(points[0].gain_SN.shape[1], num_seeds, draws, seed)
    gain_PD = np.stack([_means(point.gain_SN, clip_DN, seed_DS) for point in points])
    cost_PD = np.stack([_means(point.cost_SN, clip_DN, seed_DS) for point in points])
    on_front_P = 1 - _is_beaten(gain_PD, cost_PD).mean(axis=1)
    return [
        Estimate(
            gain=_interval(point.gain_SN, gain_D),
            cost=_interval(point.cost_SN, cost_D),
            by_seed=tuple(float(mean) for mean in point.gain_SN.mean(axis=1)),
            on_front=float(share),
        )
        for point, gain_D, cost_D, share in zip(points, gain_PD, cost_PD, on_front_P, strict=True)
    ]


def _weights(
    num_clips: int, num_seeds: int, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each clip (D, N) and of each seed (D, S) in each draw."""
    rng = np.random.default_rng(seed)
    clip_DN = rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=draws)
    taken = max(num_seeds - 1, 1)
    seed_DS = rng.multinomial(taken, np.full(num_seeds, 1 / num_seeds), size=draws)
    return clip_DN / num_clips, seed_DS / taken


def _means(value_SN: np.ndarray, clip_DN: np.ndarray, seed_DS: np.ndarray) -> np.ndarray:
    """Return the mean of each draw, (D,)."""
    mean_DS = clip_DN @ value_SN.astype(float).T
    mean_D = (mean_DS * (seed_DS if len(value_SN) > 1 else 1)).sum(axis=1)
    rounded_D: np.ndarray = mean_D.round(12)  # what is equal ties, whatever the order of its sums
    return rounded_D


def _interval(value_SN: np.ndarray, mean_D: np.ndarray) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(mean_D, (tail, 1 - tail))
    return Interval(float(value_SN.mean()), float(low), float(high))


def _is_beaten(gain_PD: np.ndarray, cost_PD: np.ndarray) -> np.ndarray:
    """Return where another point is as good in both values and better in one, bool (P, D)."""
    beaten_PD = np.zeros(gain_PD.shape, dtype=bool)
    for gain_D, cost_D in zip(gain_PD, cost_PD, strict=True):
        as_good = (gain_D >= gain_PD) & (cost_D <= cost_PD)
        beaten_PD |= as_good & ((gain_D > gain_PD) | (cost_D < cost_PD))
    return beaten_PD
