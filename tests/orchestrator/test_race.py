"""Who covers whom and who stops, beside slow versions that look at one pair at a time."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from orchestrator import race
from orchestrator.race import Entrant, covers, stopped, usable

TOTAL = 60
Draw = np.random.Generator


def entrant(draw: Draw, seen: int, skill: float, macs: float, spread: float = 0.0) -> Entrant:
    margin_C = draw.normal(skill, 1, seen)
    return Entrant(margin_C > 0, margin_C, macs * (1 + spread * draw.random(seen)))


def cut(one: Entrant, seen: int) -> Entrant:
    return Entrant(one.hit_C[:seen], one.margin_C[:seen], one.macs_C[:seen])


def covers_slowly(a: Entrant, b: Entrant, dense: Entrant) -> bool:
    """Return whether B covers A: the formulas of the module, clip by clip."""
    seen, total = len(a.hit_C), len(dense.hit_C)
    if len(b.hit_C) < seen:
        return False
    unseen, phi = total - seen, NormalDist().cdf
    width = race.WIDTH * dense.margin_C.std()
    softs, hits, costs = [], [], []
    for c in range(seen):
        softs.append(phi(a.margin_C[c] / width) - phi(b.margin_C[c] / width))
        hits.append(int(a.hit_C[c]) - int(b.hit_C[c]))
        costs.append((b.macs_C[c] - a.macs_C[c]) / dense.macs_C.mean())
    more = sum(costs) / seen
    own = (a.macs_C.var() + b.macs_C.var()) / dense.macs_C.mean() ** 2
    noise = (sum(cost**2 for cost in costs) + race.PRIOR * own) / seen - more**2
    noise = noise if noise > 1e-9 else 0.0
    z = NormalDist().inv_cdf(1 - race.COST_ALPHA)
    is_cheap = more + z * math.sqrt(noise / seen * unseen / total) <= 1e-9
    if not unseen:
        return is_cheap and sum(hits) <= 0
    mean = sum(softs) / seen
    var = (sum(s * s for s in softs) + race.PRIOR) / seen - mean**2 * seen / (seen + 1)
    discord = (sum(hit != 0 for hit in hits) + race.PRIOR) / (seen + 1)
    sd = math.sqrt(unseen**2 * var / seen + unseen * discord)
    share = a.macs_C.mean() / dense.macs_C.mean()
    z = NormalDist().inv_cdf(1 - min(race.ALPHA * share**2, race.MOST_ALPHA))
    return is_cheap and sum(hits) + unseen * mean + z * sd <= race.MARGIN * total


@pytest.fixture
def draw() -> Draw:
    return np.random.default_rng(7)


def field_of(draw: Draw) -> tuple[list[Entrant], Entrant]:
    """Return configurations that saw more and fewer clips, good and bad, and the dense model."""
    dense = entrant(draw, TOTAL, 1.0, 10)
    field = [dense]
    for seen, skill in product((10, 30, TOTAL), (-2.0, 0.0, 1.0, 3.0)):
        macs = float(draw.integers(1, 10))
        field.append(entrant(draw, seen, skill, macs, spread=0.5 * (skill == 0.0)))
        near = field[-1].margin_C + draw.normal(0, 0.01, seen)  # a neighbour
        field.append(Entrant(near > 0, near, field[-1].macs_C * 0.99))
    return field, dense


def test_who_covers_whom_is_as_the_formulas_say(draw: Draw) -> None:
    for _ in range(5):
        field, dense = field_of(draw)
        expected = [
            [i != j and covers_slowly(a, b, dense) for j, b in enumerate(field)]
            for i, a in enumerate(field)
        ]
        assert covers(field, dense).tolist() == expected
        assert 0 < np.sum(expected) < len(field) ** 2 / 2


def test_what_is_much_better_at_less_cost_covers_and_the_reverse_does_not(draw: Draw) -> None:
    dense = entrant(draw, TOTAL, 3, 10)
    good, bad = entrant(draw, 20, 3, 2), entrant(draw, 20, -1, 4)
    assert covers([bad, good], dense).tolist() == [[False, True], [False, False]]


def test_a_dearer_one_covers_nobody_however_good(draw: Draw) -> None:
    dense = entrant(draw, TOTAL, 3, 10)
    good, bad = entrant(draw, 20, 3, 4.001), entrant(draw, 20, -1, 4)
    assert not covers([bad, good], dense).any()


def test_a_few_equal_answers_are_no_proof_of_being_equal(draw: Draw) -> None:
    dense = entrant(draw, 400, 3, 10)
    same = cut(dense, 12)
    assert not covers([same, Entrant(same.hit_C, same.margin_C, same.macs_C / 2)], dense).any()


def test_of_equals_at_equal_cost_the_lower_number_stays(draw: Draw) -> None:
    dense = entrant(draw, TOTAL, 1, 10)
    same = entrant(draw, TOTAL, 1, 5)
    found = stopped({0: dense, 3: same, 7: same, 5: same}, {3, 5, 7}, {0}, dense)
    assert found == {5: 3, 7: 3}


def test_whoever_stopped_stays_covered(draw: Draw) -> None:
    """Rung after rung, over random fields: all that ever stopped are covered by those that stay."""
    for _ in range(20):
        dense = entrant(draw, TOTAL, 2, 10)
        whole = {
            n: entrant(draw, TOTAL, float(draw.normal(1.5, 1)), float(draw.integers(1, 10)))
            for n in range(1, 25)
        }
        seen = {0: dense}
        left = set(whole)
        for clips in (15, 30, 45, TOTAL):
            seen |= {n: cut(whole[n], clips) for n in left}
            gone = stopped(seen, left, {0}, dense)
            left -= gone.keys()
            assert {*gone.values()} <= left | {0}
            numbers = sorted(seen)
            covers_RR = covers([seen[n] for n in numbers], dense)
            for i, number in enumerate(numbers):
                if number not in left | {0}:
                    assert any(covers_RR[i, numbers.index(n)] for n in left | {0})
        assert 1 <= len(left) < 24


def test_who_must_stay_stays_and_who_is_gone_stays_gone(draw: Draw) -> None:
    dense = entrant(draw, TOTAL, 3, 10)
    good, bad = entrant(draw, 20, 3, 2), entrant(draw, 20, -1, 4)
    seen = {0: dense, 1: good, 2: bad}
    assert stopped(seen, {1, 2}, {0}, dense) == {2: 1}
    assert stopped(seen, {1}, {0, 2}, dense) == {}
    assert stopped({**seen, 3: bad}, {1, 2}, {0}, dense) == {2: 1}


def test_the_last_that_covers_one_that_is_gone_may_not_stop() -> None:
    """C would do for B, and B for A, which is gone; C would not do for A, by what A saw."""

    def made(first: int, end: int, seen: int, macs: float) -> Entrant:
        hit_C = (np.arange(seen) >= first) & (np.arange(seen) < end)
        return Entrant(hit_C, np.where(hit_C, 4.0, -4.0), np.full(seen, macs))

    dense = made(30, TOTAL, TOTAL, 9)
    a, b, c = made(0, 20, 40, 3), made(0, 40, TOTAL, 2), made(20, TOTAL, TOTAL, 1)
    assert covers([a, b, c], dense).tolist() == [
        [False, True, False],
        [False, False, True],
        [False] * 3,
    ]
    assert stopped({1: b, 2: c}, {1, 2}, set(), dense) == {1: 2}
    assert stopped({0: a, 1: b, 2: c}, {1, 2}, set(), dense) == {}


@pytest.mark.parametrize(
    ("clips", "kept"),
    [(10, ()), (16, (1 / 2,)), (64, (1 / 8, 1 / 4, 1 / 2)), (400, (1 / 16, 1 / 8, 1 / 4, 1 / 2))],
)
def test_rungs_of_too_few_clips_are_left_out(clips: int, kept: tuple[float, ...]) -> None:
    assert usable((1 / 16, 1 / 8, 1 / 4, 1 / 2), clips) == kept
