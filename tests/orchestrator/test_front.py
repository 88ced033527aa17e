"""The front against slow, obvious versions of itself on seeded random sets, and by hand."""

from __future__ import annotations

import math
import random
import time
from itertools import combinations, pairwise
from typing import Any

import pytest

from orchestrator.front import choose, front_of, hypervolume, knee, pair_of
from search_spaces.objectives import GMACS, TOP1
from workloads.mistakes import Mistake

OBJECTIVES = (TOP1, GMACS)
CORNER = (0.125, 0.05)


def point(top1: float, gmacs: float, **more: Any) -> dict[str, Any]:
    return {"values": {"top1": top1, "gmacs": gmacs}, **more}


def points_of(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [point(top1, gmacs) for top1, gmacs in pairs]


def random_points(seed: int) -> list[dict[str, Any]]:
    """Draw up to 40 points, half of the sets on a coarse lattice: values tie, points repeat."""
    rng = random.Random(seed)
    steps = rng.choice([6, 10**6])

    def draw(low: float, high: float) -> float:
        return low + (high - low) * rng.randint(0, steps) / steps

    return [point(draw(0.0, 1.1), draw(-0.005, 0.07)) for _ in range(rng.randint(0, 40))]


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] >= b[0] and a[1] <= b[1]


def slow_front(points: list[dict[str, Any]]) -> list[int]:
    pairs = [pair_of(p, OBJECTIVES) for p in points]
    best = [
        i
        for i, pair in enumerate(pairs)
        if pair not in pairs[:i] and not any(dominates(other, pair) for other in pairs)
    ]
    return sorted(best, key=lambda i: pairs[i][1])


def slow_hypervolume(pairs: list[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Count the cells of the lattice spanned by all coordinates that some pair dominates."""
    gains = sorted({corner[0], 1.0, *(g for g, _ in pairs if corner[0] < g < 1)})
    costs = sorted({0.0, corner[1], *(c for _, c in pairs if 0 < c < corner[1])})
    area = sum(
        (high - low) * (right - left)
        for low, high in pairwise(gains)
        for left, right in pairwise(costs)
        if any(gain >= high and cost <= left for gain, cost in pairs)
    )
    return area / ((1 - corner[0]) * corner[1])


def box_share(pairs: tuple[tuple[float, float], ...], corner: tuple[float, float]) -> float:
    """Share of the box that lies below every one of the pairs."""
    gain = min(min(g, 1.0) for g, _ in pairs) - corner[0]
    cost = corner[1] - max(max(c, 0.0) for _, c in pairs)
    return max(gain, 0) * max(cost, 0) / ((1 - corner[0]) * corner[1])


@pytest.mark.parametrize("seed", range(300))
def test_front_is_the_same_as_by_comparing_all_pairs(seed: int) -> None:
    points = random_points(seed)
    assert front_of(points, OBJECTIVES) == slow_front(points)


@pytest.mark.parametrize("seed", range(300))
def test_hypervolume_is_the_same_as_by_counting_cells(seed: int) -> None:
    pairs = [pair_of(p, OBJECTIVES) for p in random_points(seed)]
    share = hypervolume(pairs, CORNER)
    assert 0 <= share <= 1
    # Sums of at most 40 strips in another order: rounding only.
    assert share == pytest.approx(slow_hypervolume(pairs, CORNER), abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_hypervolume_is_the_same_as_by_inclusion_and_exclusion(seed: int) -> None:
    pairs = [pair_of(p, OBJECTIVES) for p in random_points(seed)][:8]
    union = sum(
        (-1) ** (size + 1) * box_share(some, CORNER)
        for size in range(1, len(pairs) + 1)
        for some in combinations(pairs, size)
    )
    assert hypervolume(pairs, CORNER) == pytest.approx(union, abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_hypervolume_of_the_front_is_that_of_all_points(seed: int) -> None:
    points = random_points(seed)
    pairs = [pair_of(p, OBJECTIVES) for p in points]
    front = [pairs[i] for i in front_of(points, OBJECTIVES)]
    assert hypervolume(front, CORNER) == pytest.approx(hypervolume(pairs, CORNER), abs=1e-12)


@pytest.mark.parametrize(
    ("pairs", "share"),
    [
        ([], 0.0),
        ([CORNER], 0.0),
        ([(1.0, 0.0)], 1.0),
        ([(7.0, -3.0)], 1.0),
        ([(0.1, 0.0), (1.0, 0.06)], 0.0),
        ([(0.5625, 0.025)], 0.25),
        ([(math.nan, 0.0), (1.0, math.nan), (math.inf, 0.0), (1.0, -math.inf)], 0.0),
    ],
)
def test_hypervolume_by_hand(pairs: list[tuple[float, float]], share: float) -> None:
    assert hypervolume(pairs, CORNER) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("corner", [(1.0, 0.05), (0.125, 0.0)])
def test_hypervolume_of_a_box_without_room_is_zero(corner: tuple[float, float]) -> None:
    assert hypervolume([(1.0, 0.0)], corner) == 0


def test_order_of_the_objectives_does_not_matter() -> None:
    points = random_points(3)
    assert front_of(points, (GMACS, TOP1)) == front_of(points, OBJECTIVES)


def test_earliest_of_equal_points_is_kept() -> None:
    assert front_of(points_of((0.8, 3), (0.9, 5), (0.8, 3), (0.9, 5)), OBJECTIVES) == [0, 1]


def test_points_without_finite_values_never_reach_the_front() -> None:
    odd = [
        point(math.nan, 0.001),
        point(math.inf, 0.001),
        point(0.9, math.nan),
        point(0.9, -math.inf),
        {"values": {}},
        {"values": {"top1": 0.99, "gmacs": None}},
    ]
    assert front_of([*odd, point(0.5, 0.01)], OBJECTIVES) == [6]
    assert front_of(odd, OBJECTIVES) == []


def test_front_of_ten_thousand_points_takes_well_under_a_second() -> None:
    rng = random.Random(0)
    points = [point(rng.random(), rng.random()) for _ in range(10_000)]
    start = time.perf_counter()
    front_of(points, OBJECTIVES)
    # 0.02 s on an idle core; the bound leaves room for a busy one and none for comparing all pairs.
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.5, 1)], 0),
        ([(0.9, 2), (0.5, 1)], 1),  # two ends, both on the chord: the cheaper
        ([(0.5, 1), (0.8, 2), (0.9, 5)], 1),
        ([(0.861, 0.0099), (0.854, 0.0077), (0.725, 0.0060)], 1),
        ([(0.0, 0), (0.6, 0.2), (0.8, 0.4), (1.0, 1)], 1),  # both 0.4 beyond the chord: the cheaper
        ([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)], 0),  # all on the chord
        ([(0.2, 0.01), (0.25, 0.02), (0.9, 0.03)], 0),  # behind the chord is no knee
        (
            [(0.5, 1), (0.8, 2), (0.9, 5), (0.1, 4), (math.nan, 1)],
            1,
        ),  # dominated ones are not asked
    ],
)
def test_knee_by_hand(pairs: list[tuple[float, float]], expected: int) -> None:
    assert knee(points_of(*pairs), OBJECTIVES) == expected


def test_knee_of_nothing_is_none() -> None:
    assert knee([], OBJECTIVES) is None
    assert choose([], OBJECTIVES, "knee") is None


@pytest.mark.parametrize("seed", range(50))
def test_knee_does_not_depend_on_the_units(seed: int) -> None:
    points = random_points(seed)
    scaled = [point(p["values"]["top1"] * 4, p["values"]["gmacs"] * 1024) for p in points]
    assert knee(points, OBJECTIVES) == knee(scaled, OBJECTIVES)


@pytest.mark.parametrize(
    ("at", "trial"),
    [
        ("knee", 1),
        (" knee ", 1),
        ("gmacs<=5", 2),
        ("gmacs<5", 1),
        ("gmacs <= 4.99e0", 1),
        ("gmacs<=0.5", None),
        ("gmacs>2", 2),
        ("top1>=0.8", 1),
        ("top1>0.8", 2),
        ("top1>=.05", 0),
        ("top1>=0.95", None),
        ("top1<0.8", 0),
    ],
)
def test_choose_takes_the_best_other_value_within_the_bound(at: str, trial: int | None) -> None:
    points = [point(0.5, 1), point(0.8, 2), point(0.9, 5), point(0.85, 6)]
    points = [{**p, "trial": trial} for trial, p in enumerate(points)]
    chosen = choose(points, OBJECTIVES, at)
    assert (chosen["trial"] if chosen else None) == trial


@pytest.mark.parametrize("seed", range(100))
def test_choose_agrees_with_looking_at_every_point(seed: int) -> None:
    points = random_points(seed)
    pairs = [pair_of(p, OBJECTIVES) for p in points]
    affordable = [pair for pair in pairs if pair[1] <= 0.03]
    accurate = [pair for pair in pairs if pair[0] >= 0.6]
    best = choose(points, OBJECTIVES, "gmacs<=0.03")
    cheapest = choose(points, OBJECTIVES, "top1>=0.6")
    assert (best and best["values"]["top1"]) == max((g for g, _ in affordable), default=None)
    assert (cheapest and cheapest["values"]["gmacs"]) == min((c for _, c in accurate), default=None)


@pytest.mark.parametrize(
    "at",
    ["", "nee", "gmacs", "gmacs=5", "gmacs<=", "gmacs<=x", "gmacs<=nan", "speed<=5", "5>=gmacs"],
)
def test_malformed_choice_names_what_is_allowed(at: str) -> None:
    with pytest.raises(Mistake) as caught:
        choose(points_of((0.5, 1)), OBJECTIVES, at)
    assert f'"{at}"' in caught.value.what
    assert all(word in caught.value.remedy for word in ("knee", "gmacs<=", "top1>=", "< >"))
