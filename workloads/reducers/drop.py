"""Random drop: keep a fixed share or number of the tubelets of each clip, chosen blindly.

The control of every other method: what its choice of tokens is worth beyond having fewer of them.

    kept = num_kept(L, keep) = int((1 - (1 - keep)) * L), at least 1; uniform without replacement
    (with `budget`: so many, whatever the grid, as Flux keeps)

Deviations from the random drop in the official RLT code (`drop_policy: random`):
* It keeps int(L * keep) - 1 tokens (a strict comparison with the k-th smallest); here it is
  num_kept.
* Its draws come from the global generator; here from one generator a clip, so that a clip keeps the
  same tokens whatever batch, process or machine it is in.

Invariants: every clip keeps the same number; tokens stay in (t, y, x) order.

Legend: B clips, L cells of the grid, C T H W video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from workloads.knobs import Float
from workloads.mistakes import Mistake
from workloads.reducers.base import At, Host, Reducer, Step
from workloads.tokens import Grid, Layout, num_kept

REVISION = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Random drop at one keep ratio."""

    keep: Annotated[float, Float(0.1, 0.9)] = 0.5
    """Share of the tubelets kept, (0, 1]; 1 = off."""
    budget: int = 0
    """Tubelets kept instead of a share; 0 = by `keep`."""
    seed: int = 0
    """Another seed, other tubelets."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise Mistake(f"drop: keep={self.keep} must be in (0, 1]", "it is the share kept")
        if self.budget < 0:
            raise Mistake(f"drop: budget={self.budget} must be 0 or more", "0 is by `keep`")

    @property
    def idle(self) -> tuple[str, ...]:
        """Knobs that mean nothing beside the others."""
        return ("keep",) if self.budget else ()

    @classmethod
    def off(cls) -> Config:
        """Return the exact identity."""
        return cls(keep=1.0)

    def build(self, host: Host) -> RandomDrop:
        """Return the reducer; see `base.Config`."""
        return RandomDrop(self, host)

    def parameters(self, dim: int, grid: Grid, generator: Generator) -> nn.Module | None:
        """Return None: there is nothing to learn."""
        return None


def keep_for(num_cells: int, num_tokens: float) -> float:
    """Return a keep ratio that leaves `num_tokens` (rounded, at least 1) of `num_cells`."""
    tokens = min(max(round(num_tokens), 1), num_cells)
    # Half a token above the count: no rounding of floats can then lose a token.
    return min(round((tokens + 0.5) / num_cells, 6), 1.0)


def choose(num_cells: int, num_tokens: int, seeds: Sequence[int]) -> Tensor:
    """Return which cells are kept, int32 (B, L): a uniform draw for each seed."""
    size_BL = torch.zeros(len(seeds), num_cells, dtype=torch.int32)
    for size_L, seed in zip(size_BL, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        size_L[torch.randperm(num_cells, generator=generator)[:num_tokens]] = 1
    return size_BL


class RandomDrop(Reducer):
    """Random drop inside a model: a mask before embedding, so dropped tubelets cost nothing."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self.host = config, host
        self.draws = bool(self.steps())

    def steps(self) -> tuple[Step, ...]:
        if self.config.keep == 1 and not self.config.budget:
            return ()
        # As many of each clip, but not of each of its frames.
        gives = Layout.RAGGED if self.host.per_frame else Layout.EQUAL
        return (Step(At.SELECT, 0, needs=Layout.RAGGED, gives=gives),)

    def check(self, grid: Grid) -> None:
        if self.config.budget > math.prod(grid):
            what = f"drop: budget={self.config.budget} is more than the {math.prod(grid)} tokens"
            raise Mistake(f"{what} of a clip", "choose a smaller budget, or more frames")

    def select(self, clip_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        num_cells = math.prod(self.host.grid(clip_BCTHW))
        num_tokens = self.config.budget or max(num_kept(num_cells, self.config.keep), 1)
        mixed = [seed ^ (self.config.seed * 0x9E3779B97F4A7C15 % 2**63) for seed in seeds]
        return choose(num_cells, num_tokens, mixed).to(clip_BCTHW.device)
