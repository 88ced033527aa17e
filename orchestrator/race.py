"""Who may leave a race: configurations that another one makes superfluous, at no higher cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

ALPHA = 0.1
MARGIN = 0.005
LEAST_CLIPS = 8  # of a stretch: with fewer nothing can be told


class Entrant(NamedTuple):
    """What was seen of a configuration, clip by clip, in the order common to all."""

    hit_C: np.ndarray
    """Whether the answer is what it should be, bool."""
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
    seen: Mapping[int, Entrant], may_stop: Collection[int], stay: Collection[int], total: int
) -> dict[int, int]:
    return {}
