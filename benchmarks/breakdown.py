"""Where the time of a forward goes, part by part, and what of it a reduction does not get back.

A part is lost time as far as it takes longer than its share of the arithmetic allows:

    lost(part) = time reduced - time dense * MACs reduced / MACs dense

over all parts, relative to the reduced forward. Selection and matching have no dense time, so all
of theirs is lost. A negative figure is time won: smaller matrices that fit the caches better.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from workloads import cost
from workloads.reducers import base
from workloads.tokens import Tokens
from workloads.trace import Price, Trace
from workloads.vit import VideoTransformer

RUNS = 7
_BOTH = {"head": "pool"}  # too short to be told apart


class Stopwatch(Trace):
    """A trace that takes the time: a part lasts until the next one begins."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._part = device, ""
        self._since = time.perf_counter()

    def add(self, part: str, tokens: Tokens, price: Price, layer: int = 0) -> None:
        self.tick(part)
        super().add(part, tokens, price, layer)

    def tick(self, part: str = "") -> None:
        """End the part that runs and begin another."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._part:
            self.seconds[self._part] += now - self._since
        self._part, self._since = _BOTH.get(part, part), now


def lost(
    model: VideoTransformer, clip_BCTHW: Tensor, chain: Sequence[base.Config], dtype: torch.dtype
) -> dict[str, float]:
    """Return the share of the reduced forward that each part loses; see the module."""
    dense, dense_macs = _measured(model, clip_BCTHW, (), dtype)
    ours, our_macs = _measured(model, clip_BCTHW, chain, dtype)
    total = sum(ours.values())
    shares = {}
    for part in ours:
        fair = our_macs[part] / dense_macs[part] if dense_macs.get(part) else 0.0
        shares[part] = (ours[part] - dense.get(part, 0.0) * fair) / total
    return shares


def _measured(
    model: VideoTransformer, clip_BCTHW: Tensor, chain: Sequence[base.Config], dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds and MACs by part, the median of some runs."""
    runs = [_timed(model, clip_BCTHW, chain, dtype) for _ in range(RUNS + 1)][1:]
    seconds = {part: median(run.seconds[part] for run in runs) for part in runs[0].seconds}
    macs: dict[str, float] = defaultdict(float)
    for part, by_clip in cost.macs_by_clip(runs[0]).items():
        macs[_BOTH.get(part, part)] += float(by_clip.mean())
    return seconds, macs


def _timed(
    model: VideoTransformer, clip_BCTHW: Tensor, chain: Sequence[base.Config], dtype: torch.dtype
) -> Stopwatch:
    device = clip_BCTHW.device
    half = dtype == torch.bfloat16
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=half):
        watch = Stopwatch(device)
        tokens = model.encode(clip_BCTHW, model.chain(chain), None, watch)
        model.classify(tokens, 0, watch)
        watch.tick()
    return watch
