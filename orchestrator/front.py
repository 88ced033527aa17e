"""The front: which points nothing beats, how much of the box they cover, which one to take.

A point is a mapping with `values` (number by objective name), as in the ledger and in the JSON of
`run` and `front`. There are two objectives, a gain (max, such as `top1`) and a cost (min, such as
`gmacs`); a pair is always (gain, cost). All functions are pure and O(n log n).

Invariants: a point whose value is missing, NaN or infinite is on no front; a front is sorted from
cheap to dear and therefore from low to high gain; of points with equal values only the earliest is
on it.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from search_spaces.objectives import GMACS, TOP1, Objective
from workloads.mistakes import Mistake

Point = Mapping[str, Any]  # Any: params and stage keys travel along unread
Pair = tuple[float, float]

IDEAL: Pair = (TOP1.ideal, GMACS.ideal)
OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
BOUND = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


def gain_and_cost(objectives: Sequence[Objective]) -> tuple[Objective, Objective]:
    """Return the objective to raise and the one to lower, whatever their order in the study."""
    (gain,) = (o for o in objectives if o.direction == "max")
    (cost,) = (o for o in objectives if o.direction == "min")
    return gain, cost


def pair_of(point: Point, objectives: Sequence[Objective]) -> Pair:
    """Return (gain, cost) of a point; NaN for a value that it lacks, as a failed trial does."""
    gain, cost = (point["values"].get(o.name) for o in gain_and_cost(objectives))
    return math.nan if gain is None else gain, math.nan if cost is None else cost


def is_finite(pair: Pair) -> bool:
    """Tell whether a pair may be compared at all."""
    return math.isfinite(pair[0]) and math.isfinite(pair[1])


def front_of(points: Sequence[Point], objectives: Sequence[Objective]) -> list[int]:
    """Return the positions of the non-dominated points, from cheap to dear."""
    pairs = [pair_of(point, objectives) for point in points]
    finite = [i for i, pair in enumerate(pairs) if is_finite(pair)]
    # Cheapest first, at equal cost the best first, at equal values the earliest first (the sort is
    # stable): whatever may dominate a point stands before it, and does so if it gains as much.
    finite.sort(key=lambda i: (pairs[i][1], -pairs[i][0]))
    front: list[int] = []
    best = -math.inf
    for i in finite:
        if pairs[i][0] > best:
            front.append(i)
            best = pairs[i][0]
    return front


def hypervolume(pairs: Iterable[Pair], corner: Pair) -> float:
    """Return the share of the box between `corner` and the ideal (1, 0) that the pairs dominate.

    A pair worse than the corner in either value adds nothing; one beyond the ideal counts as on the
    edge of the box.

    Args:
        pairs: (gain, cost) of any points; dominated ones change nothing.
        corner: what a guess reaches and what the dense model costs. Without room between corner and
            ideal (a single class) the share is 0.
    """
    floor, limit = corner
    top, free = IDEAL
    box = (top - floor) * (limit - free)
    if box <= 0:
        return 0.0
    area = 0.0
    # From cheap to dear: each pair adds the strip that it gains over all cheaper ones, as wide as
    # what it saves.
    for gain, cost in sorted(filter(is_finite, pairs), key=lambda pair: pair[1]):
        if gain > floor and cost < limit:
            area += (min(gain, top) - floor) * (limit - max(cost, free))
            floor = min(gain, top)
    return area / box


def knee(points: Sequence[Point], objectives: Sequence[Objective]) -> int | None:
    """Return the position of the front point farthest beyond the chord between the front's ends.

    Both axes are scaled to [0, 1] by those ends; ties go to the cheaper point. Only the side of the
    ideal counts: a point behind the chord is a worse bargain than the ends, not a knee. A front of
    one point has its knee there; of two, both ends lie on the chord, so the cheaper is taken.
    """
    front = front_of(points, objectives)
    if not front:
        return None
    pairs = [pair_of(points[i], objectives) for i in front]
    (low, cheap), (high, dear) = pairs[0], pairs[-1]
    gain_span, cost_span = (high - low) or 1.0, (dear - cheap) or 1.0

    def beyond(pair: Pair) -> float:
        # Scaled, the chord is gain = cost. Rounded, because points on it tie but for the last bit.
        return round((pair[0] - low) / gain_span - (pair[1] - cheap) / cost_span, 12)

    farthest = max(range(len(front)), key=lambda k: beyond(pairs[k]))
    return front[farthest]


def choose(points: Sequence[Point], objectives: Sequence[Objective], at: str) -> Point | None:
    """Return the front point that `at` asks for; None if no front point keeps the bound.

    Args:
        points: any points; those that are dominated are never chosen.
        objectives: of the study.
        at: `knee`, or a bound on one objective such as `gmacs<=20` (the best gain within it) or
            `top1>=0.8` (the cheapest within it).

    Raises:
        Mistake: `at` is neither.
    """
    if at.strip() == "knee":
        position = knee(points, objectives)
        return None if position is None else points[position]
    bounded, keeps = _bound(at, objectives)
    front = [points[i] for i in front_of(points, objectives)]
    kept = [point for point in front if keeps(point["values"][bounded.name])]
    if not kept:
        return None
    # A front rises in both values: the best gain is the last point, the lowest cost the first.
    return kept[-1] if bounded.direction == "min" else kept[0]


def _bound(at: str, objectives: Sequence[Objective]) -> tuple[Objective, Callable[[float], bool]]:
    """Return the objective that `at` bounds and the test that a value must pass."""
    match = BOUND.fullmatch(at)
    by_name = {o.name: o for o in objectives}
    if match is None or match[1] not in by_name:
        gain, cost = gain_and_cost(objectives)
        raise Mistake(
            f'--at "{at}": neither the knee nor a bound on an objective of this study',
            f'legal here: knee | "{cost.name}<=20" | "{gain.name}>=0.8" (operators <= >= < >)',
        )
    compare, limit = OPERATORS[match[2]], float(match[3])
    return by_name[match[1]], lambda value: bool(compare(value, limit))
