"""Clips in which some places stand still: what token reducers live on."""

from __future__ import annotations

import torch
from torch import Tensor


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
