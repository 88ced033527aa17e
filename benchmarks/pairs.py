"""Time two things in turn, so that a machine whose speed drifts is fair to both.

Warm-up is discarded, the device is waited for, and what counts is the median of the ratios, pair by
pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP = 2


@dataclass(frozen=True)
class Comparison:
    """How much longer the first takes than the second."""

    first_s: float
    """Median time of the first."""
    second_s: float
    ratio: float
    """Median over the pairs of first / second."""
    low: float
    """Lower quartile of the ratio."""
    high: float
    """Upper quartile of the ratio."""
    pairs: int


def compare(
    first: Callable[[], object], second: Callable[[], object], pairs: int, device: torch.device
) -> Comparison:
    """Time `first` and `second` in turn, `pairs` times."""
    for _ in range(WARM_UP):
        first(), second()
    times = [(_seconds(first, device), _seconds(second, device)) for _ in range(pairs)]
    low, middle, high = statistics.quantiles([a / b for a, b in times], n=4)
    return Comparison(
        first_s=statistics.median(a for a, _ in times),
        second_s=statistics.median(b for _, b in times),
        ratio=middle,
        low=low,
        high=high,
        pairs=pairs,
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
