"""Clips in which some places stand still, which token reducers live on, and looks at the tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workloads.tokens import Tokens, clip_of_token, without_prefix
from workloads.trace import Trace
from workloads.vit import VideoTransformer

SEEDS = (11, 12, 13)  # of the clips of a scene


def scene(
    batch: int = 3, frames: int = 8, height: int = 16, width: int = 16, seed: int = 0
) -> Tensor:
    """Return normalised clips (B, 3, T, H, W): a textured ground that stands still, a square that
    crosses it, and noise: none in the first clip, more in each one after it.
    """
    generator = torch.Generator().manual_seed(seed)
    ground = torch.randn(batch, 3, 1, height, width, generator=generator)
    clip_BCTHW = ground.repeat(1, 1, frames, 1, 1)
    for t in range(frames):
        left = t * width // (2 * frames)
        clip_BCTHW[:, :, t, height // 4 : height // 2, left : left + width // 4] = 2.0
    noise = torch.randn(clip_BCTHW.shape, generator=generator)
    level_B = torch.tensor([0.0, *(0.05 * 3.0**i for i in range(batch - 1))])
    return clip_BCTHW + noise * level_B[:, None, None, None, None]


def still(
    batch: int = 2, frames: int = 8, height: int = 16, width: int = 16, seed: int = 0
) -> Tensor:
    """Return clips in which nothing ever changes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 1, height, width, generator=generator).repeat(1, 1, frames, 1, 1)


def encoded(model: VideoTransformer, clip_BCTHW: Tensor, chain: Any = None) -> Tokens:
    """Return the tokens of the grid after the last block."""
    tokens = model.encode(clip_BCTHW, model.chain(chain), SEEDS[: len(clip_BCTHW)], Trace())
    return without_prefix(tokens)


def flat_cells(tokens: Tokens) -> list[list[int]]:
    """Return the flat cell of each token, by clip."""
    _, rows, columns = tokens.grid
    flat_N = tokens.coord_N3 @ torch.tensor([rows * columns, columns, 1])
    clip_N = clip_of_token(tokens)
    return [flat_N[clip_N == clip].tolist() for clip in range(tokens.clips[-1] + 1)]
