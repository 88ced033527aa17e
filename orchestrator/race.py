"""Who may leave a race: configurations that another one makes superfluous, at no higher cost.

A may stop where some B in the race or at its end costs no more, and A is not expected to be better
on the whole split by more than MARGIN:

    lead + unseen * mean + z * sqrt(unseen^2 * var / seen + unseen * discord) <= MARGIN * clips

`lead` is by how many of the clips seen so far A is ahead of B: they count as they are, since both
will be judged by these very clips. What the others will add is predicted from the same clips,
paired: `mean` and `var` are those of A's soft answers less B's, `discord` the share of clips on
which one is right and the other is not. z is the normal quantile of 1 - ALPHA * share^2, where
share is A's cost over the dense model's.

A soft answer is Phi(margin / width): how far the right label's logit lies above the next one, in
units of WIDTH times the spread of the dense model's. Two settings of one method differ in their
answers on few clips, and in their margins on all of them; a few dozen clips of plain answers cannot
tell such neighbours apart, of soft ones they often can. It is a smoothed count, monotone in the
margin, so it shrinks differences and invents none; it never enters a value that is reported. PRIOR
clips of full discord are added to both variances, or two that were equal so far would be held to be
equal for ever.

Why these numbers. MARGIN: half a point is what the front may lose. ALPHA: a wrong stop is the
likelier the more often a pair is tested, and it is bought with what going on would have cost: at a
tenth of the dense cost hardly anything, so there next to no error is taken (0.002), at the full
cost 0.2. One ALPHA for all was worse at both ends. Simulated on tables of full evaluations, random
clips and random settings of ten methods and chains, eleven rungs from 1/16 to 3/4; lowest, median,
highest, in dense passes:

    model, top-1        settings  clips  races  in full     raced        at most 25  loss <= 0.5
    demo, 0.87             200     400     60     100    13 / 18 / 33       93 %         95 %
    demo, 0.87             200     800     20     100    11 / 13 / 17      100 %        100 %
    mats_keep, 0.47        176     400     12     104    17 / 26 / 32       42 %         83 %
    mats_keep, 0.47        176     800      6     104    18 / 21 / 27       83 %        100 %

The highest loss was 1.0 points. ALPHA was chosen on other draws from the first table.

Costs are paired, too: with a method whose cost depends on the clip, B's must be no higher by the
same clips, with an error of COST_ALPHA: one cheap point that is lost has nothing in its place.
Whoever stopped stays covered: B may not stop while it is the last in the race that covers some A,
by the clips that A saw. Of equals at equal cost the lower number stays.

Legend: R configurations, C clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch

MARGIN = 0.005
ALPHA, MOST_ALPHA = 0.2, 0.25
PRIOR = 0.2
WIDTH = 2.0
LEAST_CLIPS = 8  # of a stretch: with fewer nothing can be told
COST_ALPHA = 1e-6  # costs of clips have long tails
EXACT = 1e-9  # rounding of sums, relative

Array = np.ndarray


class Entrant(NamedTuple):
    """What was seen of a configuration, clip by clip, in the order common to all."""

    hit_C: np.ndarray
    """Whether the answer is what it should be, bool."""
    margin_C: np.ndarray
    """Logit of what it should be less the highest other one."""
    macs_C: np.ndarray


def usable(rungs: Sequence[float], num_clips: int) -> tuple[float, ...]:
    """Return the rungs that lie at least `LEAST_CLIPS` from the one before and from the end."""
    kept: list[float] = []
    for rung in rungs:
        before = math.ceil(num_clips * kept[-1]) if kept else 0
        here = math.ceil(num_clips * rung)
        if here - before >= LEAST_CLIPS and num_clips - here >= LEAST_CLIPS:
            kept.append(rung)
    return tuple(kept)


def stopped(
    seen: Mapping[int, Entrant], may_stop: Collection[int], stay: Collection[int], dense: Entrant
) -> dict[int, int]:
    """Return who stops, each with the number of one that stays and covers it.

    Args:
        seen: what is known of every configuration, also of those that stopped before.
        may_stop: those of whom it is decided now.
        stay: those that go on, or are at their end, whatever is decided.
        dense: the dense model on all clips.
    """
    numbers = sorted(seen)
    covers_RR = covers([seen[number] for number in numbers], dense)
    is_in_R = np.array([number in may_stop or number in stay for number in numbers])
    left_R = (covers_RR & is_in_R).sum(axis=1)  # how many in the race cover each
    cost_R = [float(seen[number].macs_C.mean()) for number in numbers]
    leaving = []
    for i in sorted(range(len(numbers)), key=lambda i: (-cost_R[i], -i)):
        needed = covers_RR[:, i] & ~is_in_R & (left_R <= 1)
        if numbers[i] in may_stop and numbers[i] not in stay and left_R[i] and not needed.any():
            is_in_R[i] = False
            left_R -= covers_RR[:, i]
            leaving.append(i)
    ways = {i: np.flatnonzero(covers_RR[i] & is_in_R) for i in leaving}
    gain_R = [float(seen[number].hit_C.mean()) for number in numbers]
    best = {i: max(others, key=lambda j: (gain_R[j], -j)) for i, others in ways.items()}
    return {numbers[i]: numbers[best[i]] for i in sorted(leaving)}


def covers(entrants: Sequence[Entrant], dense: Entrant) -> np.ndarray:
    """Return for A, B whether B makes A superfluous, by the clips that A saw: bool (R, R).

    One that saw fewer clips covers nobody who saw more.
    """
    covers_RR = np.zeros((len(entrants), len(entrants)), bool)
    width = WIDTH * max(float(dense.margin_C.std()), EXACT)
    unit = float(dense.macs_C.mean())
    seen_R = np.array([len(one.hit_C) for one in entrants])
    for seen in np.unique(seen_R):
        first, second = np.flatnonzero(seen_R == seen), np.flatnonzero(seen_R >= seen)
        hit_RC = _rows(entrants, seen, lambda one: one.hit_C)
        soft_RC = _rows(entrants, seen, lambda one: _phi(one.margin_C / width))
        macs_RC = _rows(entrants, seen, lambda one: one.macs_C / unit)
        total = len(dense.hit_C)
        places = np.searchsorted(second, first)
        is_cheap = _is_cheap(macs_RC[places], macs_RC, total)
        z_A = _quantiles(macs_RC[places].mean(axis=1))
        is_enough = _is_enough(z_A, hit_RC[places], hit_RC, soft_RC[places], soft_RC, total)
        covers_RR[np.ix_(first, second)] = is_cheap & is_enough
    np.fill_diagonal(covers_RR, False)
    return covers_RR


def _rows(entrants: Sequence[Entrant], seen: int, read: Callable[[Entrant], np.ndarray]) -> Array:
    """Return a row for each entrant that saw so many clips, float64 (R, C)."""
    rows = [read(one)[:seen] for one in entrants if len(one.hit_C) >= seen]
    return np.stack(rows).astype(np.float64)


def _phi(values: np.ndarray) -> np.ndarray:
    """Return the standard normal distribution function."""
    share: Array = torch.special.ndtr(torch.from_numpy(values.astype(np.float64))).numpy()
    return share


def _quantiles(share_A: Array) -> Array:
    """Return how many standard deviations a proof takes, by share of the dense model's cost."""
    errors = np.clip(ALPHA * share_A**2, EXACT, MOST_ALPHA)
    return np.array([NormalDist().inv_cdf(1 - error) for error in errors])


def _is_enough(
    z_A: Array, hit_AC: Array, hit_BC: Array, soft_AC: Array, soft_BC: Array, total: int
) -> Array:
    """Return for A, B whether A is not expected to be ahead of B by more than MARGIN."""
    seen = hit_AC.shape[1]
    unseen = total - seen
    lead_AB = hit_AC.sum(axis=1)[:, None] - hit_BC.sum(axis=1)
    discord_AB = (_squares(hit_AC, hit_BC) + PRIOR) / (seen + 1)
    mean_AB = soft_AC.mean(axis=1)[:, None] - soft_BC.mean(axis=1)
    var_AB = (_squares(soft_AC, soft_BC) + PRIOR) / seen - mean_AB**2 * seen / (seen + 1)
    sd_AB = np.sqrt(unseen**2 * np.maximum(var_AB, 0) / seen + unseen * discord_AB)
    most = MARGIN * total if unseen else 0  # of two at their end it is known
    is_enough: Array = (
        lead_AB + unseen * mean_AB + z_A[:, None] * sd_AB * (unseen > 0) <= most + EXACT
    )
    return is_enough


def _is_cheap(macs_AC: Array, macs_BC: Array, total: int) -> Array:
    """Return for A, B whether B will cost no more than A on the whole split."""
    seen = macs_AC.shape[1]
    more_AB = macs_BC.mean(axis=1) - macs_AC.mean(axis=1)[:, None]
    own_AB = macs_AC.var(axis=1)[:, None] + macs_BC.var(axis=1)
    var_AB = (_squares(macs_AC, macs_BC) + PRIOR * own_AB) / seen - more_AB**2
    var_AB[var_AB < EXACT] = 0  # fixed counts: rounding alone
    sd_AB = np.sqrt(var_AB / seen * (total - seen) / total)
    z = NormalDist().inv_cdf(1 - COST_ALPHA)
    is_cheap: Array = more_AB + z * sd_AB <= EXACT
    return is_cheap


def _squares(one_AC: Array, two_BC: Array) -> Array:
    """Return the sums of squared differences of all pairs of rows."""
    sums: Array = (one_AC**2).sum(axis=1)[:, None] + (two_BC**2).sum(axis=1) - 2 * one_AC @ two_BC.T
    sums = np.maximum(sums, 0)
    return sums
