"""The same number of tokens by other means: what the controls of a point choose.

drop           tokens at random                    the same checkpoint, the same clip
frames         fewer frames over the same time     no reduction
resolution     smaller frames                      no reduction
grid           the same clip with all its tokens   no reduction: what the clip alone is worth
tome           ToMe with a constant r              where it can merge as far, mean over blocks
tome_schedule  ToMe with the point's own schedule  for points that merge by another rule
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from search_spaces.fit import StageConfig
from workloads.branches import Branch
from workloads.mistakes import Mistake
from workloads.models import HostConfig
from workloads.reducers import drop, flux, mats, tome, vid_tldr
from workloads.reducers.base import Config, chain_of, name_of
from workloads.tokens import Grid

Chosen = dict[str, Any]  # Any: as a trial chooses, a value for each path

_REDUCERS = "evaluate.reducers"
NEAR = 0.02  # share of the tokens of a clip


def cells_of(config: StageConfig, model: HostConfig) -> int:
    """Return the tokens of a full clip as a stage sees it."""
    return math.prod(_grid(config, model))


def others(config: StageConfig, model: HostConfig, tokens: float) -> dict[str, Chosen]:
    """Return what the controls of an evaluation choose, by kind.

    Args:
        config: of the evaluation.
        model: the host that it evaluates.
        tokens: what it achieved, of a clip, mean over blocks and clips.
    """
    names = {name_of(one) for one in config.reducers}
    changes = {"drop": dropped(config, model, tokens), **_smaller_clips(config, model, tokens)}
    changes |= _merged(config, model, tokens)
    changes["grid"] = {_REDUCERS: ()}  # more tokens than the point: it says where its gain is from
    if names == {"drop"}:
        del changes["drop"]  # it is its own control
    if names == {"tome"}:
        changes.pop("tome", None)
    return changes


def dropped(config: StageConfig, model: HostConfig, tokens: float) -> Chosen:
    """Return random drop at a number of tokens."""
    keep = drop.keep_for(cells_of(config, model), tokens)
    return {_REDUCERS: (drop.Config(keep=keep),)}


def blind(branches: tuple[Branch, ...]) -> tuple[Branch, ...] | None:
    """Return branches that take their tokens at random, each as many; None if not in each clip.

    It is the training that a model taught on chosen tokens has to be compared with.
    """
    found = []
    for branch in branches:
        counts = [_count(one) for one in branch.reducers]
        if None in counts or len(counts) > 1:
            return None
        chain = tuple(drop.Config(**count) for count in counts if count is not None)
        found.append(replace(branch, reducers=chain))
    return tuple(found)


def _count(reducer: Config) -> dict[str, Any] | None:
    """Return what random drop needs to keep as many tokens of every clip as a reducer does."""
    if isinstance(reducer, flux.Config) and reducer.budget:
        return {"budget": reducer.budget}
    if isinstance(reducer, flux.Config | mats.Config):
        return {"keep": reducer.keep}
    return None


def _grid(config: StageConfig, model: HostConfig) -> Grid:
    clip = config.clip
    return model.host().grid_of(clip.frames, clip.size, clip.size)


def _smaller_clips(config: StageConfig, model: HostConfig, tokens: float) -> dict[str, Chosen]:
    """Return fewer frames over the same time, and fewer pixels, with about as many tokens."""
    clip, (times, side, _) = config.clip, _grid(config, model)
    changes: dict[str, Chosen] = {}
    if times > 1:
        frames = _nearest(range(1, times), tokens / side**2) * model.tubelet
        stride = clip.stride * clip.frames / frames
        changes["frames"] = {"evaluate.clip.frames": frames, "evaluate.clip.stride": stride}
    if side > 1:
        square = _nearest([n**2 for n in range(1, side)], tokens / times)
        changes["resolution"] = {"evaluate.clip.size": math.isqrt(square) * model.patch}
    return {kind: {_REDUCERS: ()} | change for kind, change in changes.items()}


def _merged(config: StageConfig, model: HostConfig, tokens: float) -> dict[str, Chosen]:
    """Return ToMe at as many tokens, and at the schedule of a point that has one."""
    cells, host = cells_of(config, model), model.host()
    sequences = config.clip.frames // model.tubelet if host.per_frame else 1
    r = _constant(cells // sequences, tokens / sequences, host.depth)
    chains = {} if r is None else {"tome": (tome.Config(r=r),)}
    for one in config.reducers:
        if isinstance(one, vid_tldr.Config):
            same = tome.Config(ratio=one.ratio, layers=one.layers, counts=one.counts)
            chains["tome_schedule"] = (same,)
    legal = {}
    for kind, chain in chains.items():
        try:
            chain_of(chain, host)
        except Mistake:
            continue
        legal[kind] = {_REDUCERS: chain}
    return legal


def _constant(cells: int, tokens: float, depth: int) -> int | None:
    """Return the r that leaves about so many tokens of a sequence, mean over the blocks.

    None where no r comes near: each block may merge half of its tokens, and the first sees all.
    """
    rates = range(1, max(cells // 2, 1) + 1)
    off = {r: abs(_mean_left(cells, r, depth) - tokens) for r in rates}
    best = min(rates, key=lambda r: off[r])
    return best if off[best] <= NEAR * cells else None


def _mean_left(cells: int, r: int, depth: int) -> float:
    entered = []
    for _ in range(depth):
        entered.append(cells)
        cells -= min(r, cells // 2)
    return sum(entered) / depth


def _nearest(counts: Sequence[int], wanted: float) -> int:
    """Return the count next to the wanted one; of two, the larger."""
    return min(reversed(counts), key=lambda count: abs(count - wanted))
