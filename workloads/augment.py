"""Augmentation on the device, each clip by its own generator: normalise, crop, shift, flip, erase,
mix.

As in the RLT recipe, reducers see the pixels after all of it: mixed pixels decide what is static.
Every draw of a clip comes from the generator of that clip, so what happens to it depends neither on
its place in a batch nor on the number of processes. Only mixing needs a partner: the neighbour (2i
with 2i + 1), whom a rank's share of a batch never parts from it.

Legend: B clips, C T H W video, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from workloads.mistakes import Mistake

REVISION = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """What training may do to a clip; the default does nothing."""

    crop: float = 1.0
    """Smallest share of the side that a random square crop keeps; 1 = the whole frame."""
    shift: int = 0
    """Largest random shift, pixels; the border repeats."""
    flip: float = 0.0
    """Chance of a mirror image; 0 where left and right are labels."""
    erase: float = 0.0
    """Chance that a cuboid of the clip is set to the mean colour."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Blend neighbours, or swap a box that stays put over time (static clips stay static)."""
    alpha: float = 1.0
    """Of the Beta(alpha, alpha) from which the share of the clip itself is drawn."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1 or self.shift < 0 or self.alpha <= 0:
            raise Mistake(f"augment: {self}", "crop in (0, 1], shift 0 or more, alpha above 0")


def normalise(clip_BCTHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 pixels as float32 in the units of a model."""
    mean_C111, std_C111 = (
        torch.tensor(value, device=clip_BCTHW.device).view(-1, 1, 1, 1) for value in (mean, std)
    )
    # In place on one fresh copy: on a CPU, each further buffer costs more than its arithmetic.
    pixels_BCTHW = clip_BCTHW.contiguous().to(torch.float32, copy=True)
    return pixels_BCTHW.div_(255).sub_(mean_C111).div_(std_C111)


def augment(
    clip_BCTHW: Tensor, target_BK: Tensor, config: Config, rngs: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """Return normalised clips and their targets (class shares) after augmentation."""
    if config.crop < 1:
        cropped = (_crop(c, config.crop, r) for c, r in zip(clip_BCTHW, rngs, strict=True))
        clip_BCTHW = torch.stack(list(cropped))
    if config.shift:
        clip_BCTHW = _shift(clip_BCTHW, config.shift, rngs)
    if config.flip:
        mirrored = torch.tensor([r.random() < config.flip for r in rngs])[:, None, None, None, None]
        clip_BCTHW = clip_BCTHW.where(~mirrored.to(clip_BCTHW.device), clip_BCTHW.flip(-1))
    if config.erase:
        erased = (_erase(c, config.erase, r) for c, r in zip(clip_BCTHW, rngs, strict=True))
        clip_BCTHW = torch.stack(list(erased))
    if config.mix == "none":
        return clip_BCTHW, target_BK
    return _mix(clip_BCTHW, target_BK, config, rngs)


def _crop(clip_CTHW: Tensor, smallest: float, rng: np.random.Generator) -> Tensor:
    height, width = clip_CTHW.shape[-2:]
    share = rng.uniform(smallest, 1)
    rows, columns = max(int(height * share), 1), max(int(width * share), 1)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    part_TCHW = clip_CTHW[..., top : top + rows, left : left + columns].transpose(0, 1)
    whole = F.interpolate(part_TCHW, size=(height, width), mode="bilinear", antialias=True)
    return whole.transpose(0, 1)


def _shift(clip_BCTHW: Tensor, most: int, rngs: Sequence[np.random.Generator]) -> Tensor:
    height, width = clip_BCTHW.shape[-2:]
    wide = F.pad(clip_BCTHW, (most, most, most, most, 0, 0), mode="replicate")
    corners = (rng.integers(2 * most + 1, size=2) for rng in rngs)
    moved = [c[..., y : y + height, x : x + width] for c, (y, x) in zip(wide, corners, strict=True)]
    return torch.stack(moved)


def _erase(clip_CTHW: Tensor, chance: float, rng: np.random.Generator) -> Tensor:
    """Blank a cuboid: 2-33 % of the area, any stretch of time; zero is the mean colour."""
    if rng.random() >= chance:
        return clip_CTHW
    (frames, height, width), side = clip_CTHW.shape[1:], rng.uniform(0.02, 0.33) ** 0.5
    box = []
    for length, share in ((frames, rng.random()), (height, side), (width, side)):
        size = max(int(length * share), 1)
        start = rng.integers(length - size + 1)
        box.append(slice(start, start + size))
    clip_CTHW = clip_CTHW.clone()
    clip_CTHW[(slice(None), *box)] = 0
    return clip_CTHW


def _mix(
    clip_BCTHW: Tensor, target_BK: Tensor, config: Config, rngs: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    if len(clip_BCTHW) % 2:
        raise Mistake(
            f"augment: mix={config.mix!r} pairs neighbours, {len(clip_BCTHW)} clips are odd",
            "choose a batch that is a multiple of 2 times the ranks",
        )
    height, width = clip_BCTHW.shape[-2:]
    own_B1HW = clip_BCTHW.new_ones(len(clip_BCTHW), 1, 1, height, width)
    for i, rng in enumerate(rngs[::2]):
        own_B1HW[2 * i : 2 * i + 2] *= _own_share(config, rng, own_B1HW[0])
    other = torch.arange(len(clip_BCTHW), device=clip_BCTHW.device) ^ 1
    mixed = own_B1HW * clip_BCTHW + (1 - own_B1HW) * clip_BCTHW[other]
    share_B1 = own_B1HW.mean(dim=(1, 2, 3, 4))[:, None]
    return mixed, share_B1 * target_BK + (1 - share_B1) * target_BK[other]


def _own_share(config: Config, rng: np.random.Generator, like_11HW: Tensor) -> Tensor:
    """Return how much of each pixel stays: one number (mixup), or all but a box (cutmix)."""
    share = rng.beta(config.alpha, config.alpha)
    if config.mix == "mixup":
        return torch.full_like(like_11HW, share)
    own_11HW = torch.ones_like(like_11HW)
    rows, columns = (_span(length, 1 - share, rng) for length in like_11HW.shape[-2:])
    own_11HW[..., rows, columns] = 0
    return own_11HW


def _span(length: int, area: float, rng: np.random.Generator) -> slice:
    """Return one side of a box that covers a share of the area, cut at the border."""
    half, middle = length * area**0.5 / 2, rng.integers(length)
    return slice(max(int(middle - half), 0), int(middle + half))
