"""MATS (EVEREST): keep the tokens whose embedding changed most since the tubelet before.

Hwang et al., "EVEREST: Efficient Masked Video Autoencoder by Removing Redundant Spatiotemporal
Tokens", ICML 2024, arXiv 2211.10636; official code sunilhoho/EVEREST.

    d[t, j] = || E[t+1, j] - E[t, j] ||_2        E: patch embeddings, before positions
    I[0, j] = d[0, j],   I[t, j] = d[t-1, j]     the first tubelet copies the second
    kept    = the num_kept(n, keep) tokens of highest I over the whole clip, no quota a frame

In pre-training (`mae.py`) a random part of the kept tokens is visible and the rest is to be
reconstructed; in fine-tuning and at test the encoder runs on all of them (the paper: 0.3 and 0.6).

Frame selection (the paper's section for uncurated video, without official code): the clip brings
alpha times the frames that the model sees. Tokens are kept as above, c[i] of them in tubelet i, and
num_tubelets / alpha tubelets are drawn without replacement, with chances by c; only their frames go
on, in order, and tokens are ranked again among them. In a study: `clip.frames` = alpha * frames.

Deviations from the official code:
* Sorting is stable, lower flat id first. I[0] = I[1] makes many exact ties, which the official sort
  breaks as it likes.
* Any number of tubelets from two up (there, 8 is written into the difference) and any number of
  cells a tubelet (there, an odd one fails).
* Ratios are of tokens kept; counts come out as from its drop ratios (`num_kept`), at least one.
* Scores are float32 whatever the precision of the embedding. A score that is NaN ranks first.
* Frames: tubelets with c = 0 are drawn last, all alike; the summary of the paper leaves it open.

Invariants: every clip keeps the same number; tokens stay in (t, y, x) order; scores of still places
are those of rounding alone; no gradient passes through the choice.

Legend: B clips, T tubelets, L tokens of a tubelet, n = T * L, K kept, P chosen tubelets, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from workloads.knobs import Float
from workloads.mistakes import Mistake
from workloads.reducers.base import At, Host, Reducer, Step
from workloads.tokens import Grid, Layout, Tokens, num_kept, take

REVISION = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """Motion-aware token selection at one keep ratio."""

    keep: Annotated[float, Float(0.1, 0.9)] = 0.6
    """Share of the tokens kept, (0, 1]; 1 = off. The paper: 0.3 in pre-training, then 0.6."""
    alpha: float = 1.0
    """Frames of a clip / frames that the model sees, 1 or more; 1 = no choice of frames."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise Mistake(f"mats: keep={self.keep} must be in (0, 1]", "it is the share kept")
        if not 1 <= self.alpha < float("inf"):
            raise Mistake(f"mats: alpha={self.alpha} must be 1 or more", "the paper: 1.5")

    @classmethod
    def off(cls) -> Config:
        """Return the exact identity."""
        return cls(keep=1.0)

    def build(self, host: Host) -> MotionSelection:
        """Return the reducer; see `base.Config`."""
        return MotionSelection(self, host)

    def parameters(self, dim: int, grid: Grid, generator: Generator) -> nn.Module | None:
        """Return None: there is nothing to learn."""
        return None


def keep_of(drop: float) -> float:
    """Return the keep ratio of an official drop ratio; `num_kept` of it is the official count."""
    return 1 - drop


@torch.no_grad()
def importance(x_BTLD: Tensor) -> Tensor:
    """Return the score of each token, float32 (B, n); needs two tubelets or more."""
    x_BTLD = x_BTLD.float()
    change_BTL = torch.linalg.vector_norm(x_BTLD[:, 1:] - x_BTLD[:, :-1], dim=-1)
    return torch.cat([change_BTL[:, :1], change_BTL], dim=1).flatten(1)


@torch.no_grad()
def order(importance_BN: Tensor) -> Tensor:
    """Return flat ids by falling score, (B, n); of equal ones the lower id first."""
    return importance_BN.argsort(dim=1, descending=True, stable=True)


@torch.no_grad()
def keep_mask(importance_BN: Tensor, num_tokens: int) -> Tensor:
    """Return which tokens are kept, bool (B, n)."""
    keep_BN = torch.zeros_like(importance_BN, dtype=torch.bool)
    return keep_BN.scatter(1, order(importance_BN)[:, :num_tokens], True)


@torch.no_grad()
def per_tubelet(keep_BN: Tensor, num_tubelets: int) -> Tensor:
    """Return how many tokens are kept in each tubelet, int64 (B, T)."""
    return keep_BN.unflatten(1, (num_tubelets, -1)).sum(dim=2)


@torch.no_grad()
def choose_tubelets(count_BT: Tensor, num: int, seeds: Sequence[int]) -> Tensor:
    """Draw `num` tubelets of each clip without replacement, (B, P), rising; chances by counts.

    An exponential race: the one whose time E / c is shortest is drawn first, which is drawing one
    after the other with chances c over what is left. Those with c = 0 come after all others.
    """
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    time_BT = torch.stack(
        [torch.empty(count_BT.shape[1]).exponential_(generator=draw) for draw in draws]
    ).to(count_BT.device)
    # By E, then by E / c: that is infinite where c = 0, and there the order by E stays.
    blind_BT = time_BT.argsort(dim=1, stable=True)
    race_BT = (time_BT / count_BT).gather(1, blind_BT).argsort(dim=1, stable=True)
    return blind_BT.gather(1, race_BT)[:, :num].sort(dim=1).values


def frames_of(clip_BCTHW: Tensor, tubelet_BP: Tensor, tubelet: int) -> Tensor:
    """Return the frames of chosen tubelets, (B, C, P * tubelet, H, W)."""
    offset = torch.arange(tubelet, device=tubelet_BP.device)
    frame_BF = (tubelet_BP[:, :, None] * tubelet + offset).flatten(1)
    batch_B1 = torch.arange(len(clip_BCTHW), device=tubelet_BP.device)[:, None]
    return clip_BCTHW.transpose(1, 2)[batch_B1, frame_BF].transpose(1, 2)


class MotionSelection(Reducer):
    """MATS inside a model: frames first, if asked for, then tokens behind their embedding."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self.host = config, host
        self.draws = config.alpha > 1

    def steps(self) -> tuple[Step, ...]:
        gives = Layout.RAGGED if self.host.per_frame else Layout.EQUAL  # of a frame, any number
        steps = []
        if self.config.alpha > 1:
            steps.append(Step(At.FRAMES, 0, needs=Layout.GRID, gives=Layout.GRID))
        if self.config.keep < 1:
            steps.append(Step(At.EMBED, 0, needs=Layout.GRID, gives=gives))
        return tuple(steps)

    def grid(self, grid: Grid) -> Grid:
        return max(round(grid[0] / self.config.alpha), 1), *grid[1:]

    def check(self, grid: Grid) -> None:
        if self.steps() and grid[0] < 2:
            frames = math.ceil(2 * self.config.alpha) * self.host.tubelet
            raise Mistake(
                f"mats: {grid[0]} tubelet of {self.host.tubelet} frames has none before it",
                f"show {frames} frames or more",
            )

    def _kept(self, x_ND: Tensor, num_clips: int, grid: Grid) -> tuple[Tensor, int]:
        """Return scores (B, n) and how many tokens of a clip are kept."""
        x_BTLD = x_ND.view(num_clips, grid[0], grid[1] * grid[2], -1)
        score_BN = importance(x_BTLD)
        return score_BN, max(num_kept(score_BN.shape[1], self.config.keep), 1)

    def choose_frames(
        self, clip_BCTHW: Tensor, embed: Callable[[Tensor], Tensor], seeds: Sequence[int]
    ) -> Tensor:
        grid = self.host.grid(clip_BCTHW)
        with torch.no_grad():
            score_BN, num = self._kept(embed(clip_BCTHW), len(clip_BCTHW), grid)
        count_BT = per_tubelet(keep_mask(score_BN, num), grid[0])
        tubelet_BP = choose_tubelets(count_BT, self.grid(grid)[0], seeds)
        return frames_of(clip_BCTHW.to(score_BN.device), tubelet_BP, self.host.tubelet)

    def after_embed(self, tokens: Tokens, learned: nn.Module | None) -> Tokens:
        num_clips = len(tokens.lengths)
        score_BN, num = self._kept(tokens.x_ND, num_clips, tokens.grid)
        kept_BK = order(score_BN)[:, :num].sort(dim=1).values
        start_B1 = torch.arange(num_clips, device=kept_BK.device)[:, None] * score_BN.shape[1]
        return take(tokens, (kept_BK + start_B1).flatten(), (num,) * num_clips)

    def macs(self, at: At, num_tokens: int) -> int:
        """One square a channel and token; frames are chosen by embedding all of them first."""
        host = self.host
        squares = num_tokens * host.dim
        if at == At.FRAMES:
            return squares + num_tokens * host.dim * host.channels * host.tubelet * host.patch**2
        return squares
