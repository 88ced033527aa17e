"""How strong each method must be for about half of the tokens to enter a block on average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from workloads.models import HostConfig
from workloads.reducers import available, drop, flux, inti, load, mats, rlt, tome, vid_tldr

WANTED, LEAST, MOST = 0.5, 0.4, 0.6  # share of the tokens
MERGING = 2  # blocks in which vid-TLDR merges, as in the paper's shorter schedules
MOST_TAU = 2.0


def chosen(config: HostConfig, clip_BCTHW: Tensor) -> dict[str, Any]:
    """Return a Config of every reducer, set for these clips; unknown ones as they come."""
    return {
        name: SETTINGS[name](config, clip_BCTHW) if name in SETTINGS else load(name).Config()
        for name in available()
    }


def rlt_at(config: HostConfig, clip_BCTHW: Tensor) -> rlt.Config:
    """Return the threshold at which RLT keeps the wanted share of these clips, or comes nearest."""
    low, high = 0.0, MOST_TAU
    score_BTHW = rlt.score(clip_BCTHW, config.tubelet, config.patch)
    for _ in range(20):
        tau = (low + high) / 2
        kept = rlt.mask(score_BTHW, tau)
        low, high = (tau, high) if kept.float().mean() > WANTED else (low, tau)
    return rlt.Config(tau=round(high, 4))


def tome_at(config: HostConfig, clip_BCTHW: Tensor) -> tome.Config:
    """Return the constant r that leaves the wanted share of the tokens."""
    time, rows, columns = config.host().grid(clip_BCTHW)
    removed = time * rows * columns * (1 - WANTED)  # on average; r grows from 0 to twice that
    return tome.Config(r=round(2 * removed / (config.depth - 1)))


def vid_tldr_at(config: HostConfig, clip_BCTHW: Tensor) -> vid_tldr.Config:
    """Return the ratio of the first blocks that leaves the wanted share of the tokens."""

    def left(ratio: float) -> float:
        shares = [(1 - ratio) ** min(layer, MERGING) for layer in range(config.depth)]
        return sum(shares) / config.depth

    ratio = min((step / 100 for step in range(5, 51)), key=lambda r: abs(left(r) - WANTED))
    return vid_tldr.Config(ratio=ratio, layers=MERGING)


def inti_at(config: HostConfig, clip_BCTHW: Tensor) -> inti.Config:
    """Return the one halving that leaves no more than the most allowed share of the tokens."""
    after = max(block for block in range(1, config.depth) if (1 + block / config.depth) / 2 <= MOST)
    return inti.Config(halve_after=(after,))


SETTINGS: dict[str, Callable[[HostConfig, Tensor], Any]] = {  # Any: the Config of each
    "drop": lambda config, clip_BCTHW: drop.Config(keep=WANTED),
    "flux": lambda config, clip_BCTHW: flux.Config(keep=WANTED),
    "inti": inti_at,
    "mats": lambda config, clip_BCTHW: mats.Config(keep=WANTED),
    "rlt": rlt_at,
    "tome": tome_at,
    "vid_tldr": vid_tldr_at,
}
