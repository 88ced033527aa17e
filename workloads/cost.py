"""What a forward costs, from its trace: multiply-accumulates (1 MAC = 2 FLOPs) by part and clip.

    embed      n * D * (C * tubelet * patch^2)          attention  4 n D^2 + 2 n^2 D
    mlp        2 n D * hidden                           pool       n D       head  D * classes
    select, match: what the reducer that acts says (`Reducer.macs`)
    adapt: what a host does beside its backbone (adapters, attention over time)

The numbers come from the parts themselves: each says what a sequence costs it.

Costs are taken per clip and then averaged: attention is quadratic, so the cost of a mean number of
tokens is less than the mean cost. Norms, softmax and activations are not counted, as everywhere.

Legend: n tokens of a sequence, B clips, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workloads.reducers.base import Chain, Config
from workloads.trace import Trace
from workloads.vit import VideoTransformer

REVISION = 2
PARTS = ("select", "embed", "attention", "match", "mlp", "adapt", "pool", "head")


def macs(
    model: VideoTransformer,
    clip_BCTHW: Tensor,
    chain: Chain | Sequence[Config] | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, float]:
    """Return the MACs of a clip, averaged over the batch: `total` and its parts."""
    with torch.no_grad():
        _, trace = model.traced(clip_BCTHW, chain, seeds=seeds)
    parts = macs_by_clip(trace)
    means = {part: float(by_clip.mean()) for part, by_clip in parts.items()}
    return {"total": sum(means.values()), **means}


def macs_by_clip(trace: Trace) -> dict[str, np.ndarray]:
    """Return the MACs of each clip, float64 (B,), by part."""
    num_clips = trace.visits[-1].clips[-1] + 1
    parts = {part: np.zeros(num_clips) for part in PARTS}
    for visit in trace.visits:
        spent = [visit.price(n) for n in visit.lengths]
        np.add.at(parts[visit.part], list(visit.clips), spent)
    return parts


def tokens_by_clip(trace: Trace) -> np.ndarray:
    """Return the tokens of each clip that enter a block, mean over the blocks, float64 (B,).

    Class tokens are not counted.
    """
    entered = [visit for visit in trace.visits if visit.part == "attention"]
    totals = np.zeros(trace.visits[-1].clips[-1] + 1)
    for visit in entered:
        np.add.at(totals, list(visit.clips), np.subtract(visit.lengths, visit.num_prefix))
    return totals / len(entered)
