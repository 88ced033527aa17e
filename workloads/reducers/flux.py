"""Group-dynamic selection (Flux): in each group of frames, keep the tokens that change most.

Wang et al., "Make Your Training Flexible: Towards Deployment-Efficient Video Models", ICCV 2025,
arXiv 2503.14237; official code OpenGVLab/FluxViT (MIT).

    G groups of T/G frames in a row:  G = 4 if T % 4 == 0, 1 if T == 2, else 2
    d[t] = || e[t] - e[t-1] ||_2 over channels, within a group; its first frame copies the second's
    keep the k highest of each group, raster order               ties: lower position first

e are embedded tokens before positions and class token (in FluxViT: after its second patch norm).
Each group keeps the same k, whatever its motion, so every clip keeps G * k: dense batches.

How many: exactly one of `keep` and `budget` counts. A budget b is a number of tokens, so it fits
some grids only; a share fits all, and is what a search may turn anywhere.

Deviations from the official code:
* k = b // G. The official k = int((1 - (1 - b / n)) * (n / G)) in floats loses up to a token a
  group (1568 tokens, b = 1024: 1020 are kept); `official_count` reproduces that.
* The sort is stable. Ties are the rule (both first frames of a group score alike) and the official
  sort decides them by chance.
* Groups of one frame (T = 4), which crash there, and odd T are refused before any work, unless all
  tokens stay; so is a budget above the grid, which the official code takes for "no selection".
  `groups` sets another G.
* A host without patch norms is selected by what it embeds; the paper's tokens are all of one norm.

Invariants: scores do not change with rotations of the channels or with what is added to a place in
all frames of a group; kept sets are nested in k; no difference crosses the border of a group.

Legend: B clips, T frames of tokens, L cells of a frame, G groups, F scores of a group (T / G * L),
K kept, D width, N packed tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from workloads.knobs import Float, Int
from workloads.mistakes import Mistake
from workloads.reducers.base import At, Host, Reducer, Step
from workloads.tokens import Grid, Layout, Tokens, num_kept

REVISION = 1
BY_KEEP = 0.5  # what `keep` is where a budget stands instead


@dataclass(frozen=True, kw_only=True)
class Config:
    """Group-dynamic selection of a share of the tokens, or of a number of them."""

    keep: Annotated[float, Float(0.1, 0.9)] = BY_KEEP
    """Share of the tokens kept, (0, 1], at least one a group; 1 = off."""
    budget: Annotated[int, Int(0, 0)] = 0
    """Tokens kept instead of a share; 0 = by `keep`. Its range in a search depends on the grid."""
    groups: int = 0
    """Groups of frames; 0 = the paper's rule, 1 = no groups."""
    official_count: bool = False
    """Round the tokens of a group as the official code does (see above)."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise Mistake(f"flux: keep={self.keep} must be in (0, 1]", "it is the share kept")
        if self.budget < 0 or self.groups < 0:
            what = f"flux: budget={self.budget}, groups={self.groups} must be 0 or more"
            raise Mistake(what, "0 leaves them to `keep` and to the paper's rule")
        if self.budget and self.keep != BY_KEEP:
            what = f"flux: keep={self.keep} and budget={self.budget} both say how many"
            raise Mistake(what, "give one of them")

    @classmethod
    def off(cls) -> Config:
        """Return the exact identity."""
        return cls(keep=1.0)

    @property
    def idle(self) -> tuple[str, ...]:
        """Knobs that mean nothing beside the others."""
        return ("keep",) if self.budget else ("budget",)

    def build(self, host: Host) -> GroupDynamic:
        """Return the reducer; see `base.Config`."""
        return GroupDynamic(self, host)

    def parameters(self, dim: int, grid: Grid, generator: Generator) -> nn.Module | None:
        """Return None: there is nothing to learn."""
        return None


def groups_of(num_frames: int) -> int:
    """Return the paper's number of groups."""
    return 4 if num_frames % 4 == 0 else 1 if num_frames == 2 else 2


def official_count(num_cells: int, share: float, groups: int) -> int:
    """Return the tokens that the official code keeps in each group: truncated in floats."""
    return num_kept(num_cells // groups, min(share, 1.0))


@torch.no_grad()
def importance(x_BTLD: Tensor, groups: int) -> Tensor:
    """Return the score of each token by group, float32 (B, G, F)."""
    batch, time = x_BTLD.shape[:2]
    x_BGTLD = x_BTLD.float().view(batch, groups, time // groups, *x_BTLD.shape[2:])
    change_BGTL = (x_BGTLD[:, :, :-1] - x_BGTLD[:, :, 1:]).norm(dim=-1)
    return torch.cat([change_BGTL[:, :, :1], change_BGTL], dim=2).flatten(2)


def highest(score_BGF: Tensor, count: int) -> Tensor:
    """Return the places of the `count` highest scores of each group, in order, (B, K).

    Places run over all groups one after the other: they are flat cells (t, y, x) of the grid.
    """
    groups, size = score_BGF.shape[1:]
    order_BGF = score_BGF.argsort(dim=-1, descending=True, stable=True)
    kept_BGK = order_BGF[..., :count].sort(dim=-1).values
    starts_G1 = torch.arange(groups, device=score_BGF.device)[:, None] * size
    return (kept_BGK + starts_G1).flatten(1)


class GroupDynamic(Reducer):
    """Flux inside a model: acts once, on embedded tokens."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self.host = config, host

    def steps(self) -> tuple[Step, ...]:
        if self.config.keep == 1:
            return ()
        # Clips stay equal; their frames do not.
        gives = Layout.RAGGED if self.host.per_frame else Layout.EQUAL
        return (Step(At.EMBED, 0, needs=Layout.GRID, gives=gives),)

    def check(self, grid: Grid) -> None:
        time, num_cells, budget = grid[0], math.prod(grid), self.config.budget
        if budget > num_cells:
            what = f"flux: budget={budget} is more than the {num_cells} tokens of a clip"
            raise Mistake(what, "choose a smaller budget, more frames or larger ones")
        if not self.steps() or budget == num_cells:
            return
        groups = self.groups(time)
        if time % groups or time // groups < 2:
            what = f"flux: {time} frames of tokens cannot be {groups} groups of two or more"
            raise Mistake(what, "show 2, 6, 8, 10, ... of them, or set `groups`")
        if not self.count(grid):
            what = f"flux: budget={budget} leaves nothing to each of {groups} groups"
            raise Mistake(what, f"choose a budget of {groups} or more")

    def groups(self, num_frames: int) -> int:
        """Return the number of groups of a clip."""
        return self.config.groups or groups_of(num_frames)

    def count(self, grid: Grid) -> int:
        """Return how many tokens each group keeps."""
        num_cells, groups, config = math.prod(grid), self.groups(grid[0]), self.config
        if config.official_count:
            share = config.budget / num_cells if config.budget else config.keep
            count = official_count(num_cells, share, groups)
        else:
            count = (config.budget or num_kept(num_cells, config.keep)) // groups
        return count if config.budget else max(count, 1)

    def kept(self, grid: Grid) -> int:
        """Return how many tokens a clip keeps; all, if they are no more than the budget."""
        num_cells = math.prod(grid)
        if self.config.budget >= num_cells:
            return num_cells
        return self.count(grid) * self.groups(grid[0])

    def after_embed(self, tokens: Tokens, learned: nn.Module | None) -> Tokens:
        time, count = tokens.grid[0], self.count(tokens.grid)
        if self.kept(tokens.grid) == math.prod(tokens.grid):
            return tokens
        x_BLD = tokens.per_sequence(tokens.x_ND)
        x_BTLD = x_BLD.detach().unflatten(1, (time, -1))
        place_BK = highest(importance(x_BTLD, self.groups(time)), count)
        starts_B1 = torch.arange(len(x_BLD), device=x_BLD.device)[:, None] * x_BLD.shape[1]
        index_N = (place_BK + starts_B1).flatten()
        return tokens.replace(
            x_ND=tokens.x_ND[index_N],
            coord_N3=tokens.coord_N3[index_N],
            size_N=tokens.size_N[index_N],
            lengths=(place_BK.shape[1],) * len(tokens.lengths),
            layout=Layout.EQUAL,
        )

    def macs(self, at: At, num_tokens: int) -> int:
        """A subtraction and a square a channel; as everywhere, a sort is free."""
        return 2 * num_tokens * self.host.dim
