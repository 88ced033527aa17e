"""Run-length tokenization: drop the tubelets that repeat the one before them.

Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization",
NeurIPS 2024, arXiv 2411.05222; official code rccchoudhury/rlt (MIT).

    d[i]    = | last frame of tubelet i - FIRST frame of tubelet i-1 |   per pixel and channel
    s[i]    = mean over channels of the mean over the patch of d[i]      i >= 1; tubelet 0 stays
    keep[i] = s[i] > tau                                                 strict, in float32

tau is in ImageNet-normalised units: one grey level in all channels is 0.01735, so 0.1 (the paper's
value) is 5.8 grey levels. -1 switches off; 0 still drops bit-identical tubelets. The reference is
always the *previous* tubelet, kept or not: a drift slower than tau per step is dropped for ever.

Deviations from the official code:
* Run lengths are aligned with their tokens. The official list comes out in (y, x, t) order while
  tokens are in (t, y, x), so lengths go to the wrong tokens; `official_order` reproduces that for
  comparison.
* The first tubelet is kept explicitly, not by a sentinel of 255 that a larger tau would drop.
* A tubelet with NaN pixels is kept, not dropped without a word.
* T not a multiple of the tubelet, or below two tubelets, is refused; the official code crashes or,
  for T=5, silently gives a wrong number of tokens.
* tau stays in ImageNet units in hosts that normalise differently: pixels are rescaled first.

Invariants: masks are nested in tau; run lengths of a column add up to the tubelets of a clip.

Legend: B clips, C channels, T' tubelets (T in BTHW suffixes is T'), H W grid rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from workloads.knobs import Float
from workloads.mistakes import Mistake
from workloads.reducers.base import At, Host, Reducer, Step
from workloads.tokens import Grid, Layout, Tokens

REVISION = 2
IMAGENET_STD = (0.229, 0.224, 0.225)
FIRST = 255.0  # what the official code scores the first tubelet with


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run-length tokenization with one threshold."""

    tau: Annotated[float, Float(0.01, 0.5, log=True)] = 0.1
    """Mean absolute change that counts as motion, ImageNet-normalised units; -1 = off."""
    encode_length: bool = False
    """Add a learned embedding of the run length to each token (needs a model built with it)."""
    official_order: bool = False
    """Give run lengths to the tokens that the official code gives them to (see above)."""

    def __post_init__(self) -> None:
        if self.tau != -1 and not (math.isfinite(self.tau) and self.tau >= 0):
            raise Mistake(
                f"rlt: tau={self.tau} must be 0 or more, or -1", "0.1 is the paper's value"
            )

    @classmethod
    def off(cls) -> Config:
        """Return the exact identity."""
        return cls(tau=-1)

    def build(self, host: Host) -> RunLength:
        """Return the reducer; see `base.Config`."""
        if self.encode_length and "rlt" not in host.learned:
            raise Mistake(
                "rlt: encode_length=True, but this model has no length table",
                "train with it (finetune.reducers), or leave encode_length out",
            )
        return RunLength(self, host)

    def parameters(self, dim: int, grid: Grid, generator: Generator) -> nn.Module | None:
        """Return the length table, if lengths are encoded."""
        return LengthTable(grid[0], dim, generator) if self.encode_length else None


@torch.no_grad()
def score(clip_BCTHW: Tensor, tubelet: int, patch: int) -> Tensor:
    """Return the change of each tubelet against the one before, float32 (B, T', H', W').

    Rows and columns beyond a multiple of the patch are not looked at.

    Raises:
        Mistake: T is not a multiple of the tubelet, or is less than two tubelets.
    """
    num_frames = clip_BCTHW.shape[2]
    if num_frames % tubelet or num_frames < 2 * tubelet:
        raise Mistake(
            f"rlt: {num_frames} frames must be a multiple of the tubelet ({tubelet}), at least two",
            f"sample {max(2, math.ceil(num_frames / tubelet)) * tubelet} frames",
        )
    later = clip_BCTHW[:, :, 2 * tubelet - 1 :: tubelet].float()
    earlier = clip_BCTHW[:, :, : num_frames - tubelet : tubelet].float()
    change = F.avg_pool3d((later - earlier).abs(), (1, patch, patch)).mean(dim=1)
    return F.pad(change, (0, 0, 0, 0, 1, 0), value=FIRST)


@torch.no_grad()
def mask(score_BTHW: Tensor, tau: float) -> Tensor:
    """Return which tubelets are kept, bool (B, T', H', W')."""
    threshold = torch.tensor(tau, dtype=torch.float32, device=score_BTHW.device)
    keep_BTHW = ~(score_BTHW <= threshold)  # not `>`: NaN is no reason to drop
    keep_BTHW[:, 0] = True
    return keep_BTHW


@torch.no_grad()
def run_lengths(keep_BTHW: Tensor) -> Tensor:
    """Return the tubelets that each kept one stands for, int32 (B, T', H', W'); 0 = dropped."""
    num = keep_BTHW.shape[1]
    time_T11 = torch.arange(num, device=keep_BTHW.device)[:, None, None]
    start_BTHW = torch.where(keep_BTHW, time_T11, num)
    # The next kept tubelet at or after each time: a running minimum from the end.
    next_BTHW = start_BTHW.flip(1).cummin(dim=1).values.flip(1)
    end_BTHW = F.pad(next_BTHW[:, 1:], (0, 0, 0, 0, 0, 1), value=num)
    return ((end_BTHW - time_T11) * keep_BTHW).int()


def official_order(length_BTHW: Tensor) -> Tensor:
    """Return the run lengths of all kept tubelets in the official (b, y, x, t) order, (N,)."""
    length_BHWT = length_BTHW.permute(0, 2, 3, 1)
    return length_BHWT[length_BHWT > 0]


class LengthTable(nn.Module):
    """A learned embedding for each run length 1..T'; paper section 3.3."""

    def __init__(self, num_lengths: int, dim: int, generator: Generator) -> None:
        super().__init__()
        self.length_embed = nn.Parameter(torch.zeros(1, num_lengths, dim))
        nn.init.trunc_normal_(self.length_embed, std=0.02, generator=generator)

    def forward(self, size_N: Tensor) -> Tensor:
        """Return one row for each token, (N, D)."""
        return self.length_embed[0, size_N.long() - 1]


class RunLength(Reducer):
    """RLT inside a model: a mask before embedding and, if asked for, lengths after it."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self.host = config, host
        # Pixels of this host times the ratio are pixels in ImageNet units.
        self._ratios = tuple(a / b for a, b in zip(host.std, IMAGENET_STD, strict=False))

    def steps(self) -> tuple[Step, ...]:
        if self.config.tau == -1:
            return ()
        select = Step(At.SELECT, 0, needs=Layout.RAGGED, gives=Layout.RAGGED)
        lengths = Step(At.EMBED, 0, needs=Layout.RAGGED, gives=Layout.GRID)
        return (select, lengths) if self.config.encode_length else (select,)

    def select(self, clip_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        if any(ratio != 1 for ratio in self._ratios):
            clip_BCTHW = clip_BCTHW * clip_BCTHW.new_tensor(self._ratios).view(-1, 1, 1, 1)
        keep_BTHW = mask(score(clip_BCTHW, self.host.tubelet, self.host.patch), self.config.tau)
        length_BTHW = run_lengths(keep_BTHW)
        if self.config.official_order:
            length_BTHW[keep_BTHW] = official_order(length_BTHW)
        return length_BTHW.flatten(1)

    def after_embed(self, tokens: Tokens, learned: nn.Module | None) -> Tokens:
        assert isinstance(learned, LengthTable), "checked in Config.build"
        if tokens.grid[0] > (longest := learned.length_embed.shape[1]):
            raise Mistake(
                f"rlt: clips of {tokens.grid[0]} tubelets, but run lengths only up to {longest}",
                "show as many frames as in training, or leave encode_length out",
            )
        return tokens.replace(x_ND=tokens.x_ND + learned(tokens.size_N))

    def macs(self, at: At, num_tokens: int) -> int:
        """One subtraction a pixel and channel of the one frame of each tubelet that is compared."""
        return num_tokens * self.host.channels * self.host.patch**2 if at == At.SELECT else 0
