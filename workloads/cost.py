"""What a forward costs, from its trace: multiply-accumulates (1 MAC = 2 FLOPs) by part and clip.

    embed      n * D * (C * tubelet * patch^2)          attention  4 n D^2 + 2 n^2 D
    mlp        2 n D * hidden                           pool       n D       head  D * classes
    select, match: what the reducer that acts says (`Reducer.macs`)
    adapt: what a host does beside its backbone (adapters, attention over time)
    decode: the decoder of masked pre-training, its bridge and head included

The numbers come from the parts themselves: each says what a sequence costs it. Papers leave some of
them out, each its own; `by_paper` counts as they do, for comparison with their tables.

Costs are taken per clip and then averaged: attention is quadratic, so the cost of a mean number of
tokens is less than the mean cost. Norms, softmax and activations are not counted, as everywhere.

Legend: n tokens of a sequence, B clips, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workloads.models import HostConfig
from workloads.reducers.base import Chain, Config
from workloads.trace import Trace
from workloads.vit import VideoTransformer

REVISION = 2
_BLOCKS = ("attention", "mlp")
PARTS = ("select", "embed", "attention", "match", "mlp", "adapt", "pool", "head", "decode")


@dataclass(frozen=True)
class Counting:
    """What a paper calls its GFLOPs; all of them count multiply-accumulates."""

    parts: tuple[str, ...]
    """Parts that are counted."""
    norm: int = 0
    """Operations an element of a LayerNorm."""
    embeds_kept: bool = False
    """Whether only the tokens that enter the first block are counted as embedded."""


COUNTINGS = {
    # vid-TLDR: fvcore on the vision tower; it takes 5 operations an element of a norm.
    "vid_tldr": Counting((*_BLOCKS, "embed", "match"), norm=5),
    # Flux: a budget costs the same whatever grid it was selected from.
    "flux": Counting((*_BLOCKS, "embed", "pool"), embeds_kept=True),
    # EVEREST, VideoMAE, RLT and ToMe: blocks, embedding and decoder; neither pool nor head.
    "mats": Counting((*_BLOCKS, "embed", "decode")),
    "rlt": Counting((*_BLOCKS, "embed", "decode")),
    "tome": Counting((*_BLOCKS, "embed", "decode")),
    "drop": Counting((*_BLOCKS, "embed", "decode")),
    # InTI: blocks of the image model, as its reduction of 37.5 % follows from them alone.
    "inti": Counting(_BLOCKS),
}
"""How the paper of each reducer counts, by its name."""


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


def foresee(config: HostConfig, clip_BCTHW: Tensor, chain: Sequence[Config] = ()) -> Trace:
    """Return the trace of a forward without running it: only pixels are looked at.

    A model of shapes alone sees the clips: reducers that select by pixels (RLT) make their mask,
    everything behind it is counted, not computed. Exact, and free of the model's size.

    Args:
        config: the host.
        clip_BCTHW: normalised pixels; without a reducer that looks at them, any will do.
        chain: reducers to apply.
    """
    with torch.device("meta"):
        model = config.build(1, chain)
    with torch.no_grad():
        return model.traced(clip_BCTHW, tuple(chain))[1]


def by_paper(trace: Trace, counting: Counting, dim: int) -> float:
    """Return the MACs of a clip as a paper counts them, averaged over the batch.

    Args:
        trace: of a forward.
        counting: one of `COUNTINGS`.
        dim: width of a token of the host.
    """
    total = 0.0
    entered = next(visit for visit in trace.visits if visit.part == "attention")
    for visit in trace.visits:
        lengths: Sequence[int] = visit.lengths
        if visit.part == "embed" and counting.embeds_kept:
            lengths = [n - entered.num_prefix for n in entered.lengths]
        if visit.part in counting.parts:
            total += sum(visit.price(n) for n in lengths)
        if visit.part in _BLOCKS:
            total += counting.norm * dim * sum(lengths)
        if visit.part == "pool":  # the norm of the tokens and that of the pooled vector
            total += counting.norm * dim * (sum(lengths) + len(lengths))
    return total / (trace.visits[-1].clips[-1] + 1)


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
