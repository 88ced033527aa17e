"""What each reduction could drop of a video, without a model: pixels alone decide.

RLT looks at pixels anyway, so the share of tokens that it keeps is exact. MATS and Flux look at
embedded tokens; here a token is its own normalised pixels, so how much of the motion the kept ones
hold tells how well a few tokens can stand for all, not which ones a trained embedding would choose.

A clip is sampled as for VideoMAE: 16 frames, every fourth, squashed to 224 pixels, the last one
repeated where the video ends. Frame rates (all frames that the camera took, 15 and 7.5 a second)
are compared without repeats, for those are dropped at any rate: what changes from one tubelet to
the next stands for a whole clip. Sensor noise and compression decide about low thresholds, so
numbers hold for videos that are stored like these.

Legend: B clips, C T H W video, T tubelets behind an embedding, L cells of a tubelet, D pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workloads import clips, cost, frames
from workloads.models import videomae
from workloads.probe import MOST_PIXELS, Seen, pictures
from workloads.reducers import flux, mats, rlt
from workloads.tokens import num_kept

TAUS = (0.02, 0.05, 0.1, 0.25)
KEEPS = (0.3, 0.5, 0.7)
RATES = ("native", "15 fps", "7.5 fps")
FPS = {"15 fps": 15.0, "7.5 fps": 7.5}
SIZES = ("small", "base", "large")
CLIP = clips.Config(frames=16, stride=4.0, size=224)
HOST = videomae.Config()
MOST_FRAMES = 150  # of a video, from its start
MIDDLE = clips.View(0, 1)


@dataclass(frozen=True)
class Survey:
    """One video; shares of the tokens of a clip, or of its motion."""

    kept: dict[float, float]
    """RLT's tau -> share of the tokens it keeps."""
    by_rate: dict[str, dict[float, float]]
    """Frame rate -> the same at that rate."""
    motion: dict[str, dict[float, float]]
    """`mats`, `flux` -> keep -> share of all change that the kept tokens hold."""


def survey(path: Path) -> Survey:
    """Survey the start of a video, or raise UnreadableVideo."""
    seen = Seen()
    shown = islice(pictures(path, MOST_PIXELS, seen), MOST_FRAMES)
    frames_THWC = np.stack([_squashed(frame_HWC) for frame_HWC in shown])
    strides = {rate: max(seen.stated_fps / fps, 1.0) for rate, fps in FPS.items()}
    clip_BCTHW = sampled(frames_THWC, CLIP.stride)
    return Survey(
        kept=kept_by_rlt(clip_BCTHW),
        by_rate={rate: kept_at(frames_THWC, strides.get(rate, 1.0)) for rate in RATES},
        motion=motion_held(clip_BCTHW),
    )


def _squashed(frame_HWC: np.ndarray) -> np.ndarray:
    return frames.resize(frame_HWC[None], CLIP.size, CLIP.size)[0]


def sampled(frames_THWC: np.ndarray, stride: float, num: int = CLIP.frames) -> Tensor:
    """Return the middle clip of some frames at a stride, normalised, (1, C, T, H, W)."""
    config = clips.Config(frames=num, stride=stride, size=CLIP.size)
    chosen = clips.frame_indices(len(frames_THWC), config, MIDDLE)
    clip_TCHW = torch.from_numpy(frames_THWC[chosen]).permute(0, 3, 1, 2).float() / 255
    mean_C11, std_C11 = (torch.tensor(v)[:, None, None] for v in (HOST.mean, HOST.std))
    return ((clip_TCHW - mean_C11) / std_C11).transpose(0, 1)[None]


def kept_by_rlt(clip_BCTHW: Tensor) -> dict[float, float]:
    """Return the share of the tokens that RLT keeps, by tau."""
    score_BTHW = rlt.score(clip_BCTHW, HOST.tubelet, HOST.patch)
    return {tau: float(rlt.mask(score_BTHW, tau).float().mean()) for tau in TAUS}


def kept_at(frames_THWC: np.ndarray, stride: float) -> dict[float, float]:
    """Return the share of a whole clip that RLT keeps at a stride, by tau, repeating no frame.

    Shorter videos give shorter clips, of two tubelets at least.
    """
    shown = int((len(frames_THWC) - 1) / stride) + 1
    tubelets = max(min(shown, CLIP.frames) // HOST.tubelet, 2)
    kept = kept_by_rlt(sampled(frames_THWC, stride, tubelets * HOST.tubelet))
    whole = CLIP.frames // HOST.tubelet
    changed = {tau: (share * tubelets - 1) / (tubelets - 1) for tau, share in kept.items()}
    return {tau: (1 + share * (whole - 1)) / whole for tau, share in changed.items()}


def motion_held(clip_BCTHW: Tensor) -> dict[str, dict[float, float]]:
    """Return the share of all change that the kept tokens hold, by method and keep; 1 if none."""
    x_BTLD = _tokens(clip_BCTHW)
    groups = flux.groups_of(x_BTLD.shape[1])
    mats_BN, flux_BGF = mats.importance(x_BTLD), flux.importance(x_BTLD, groups)
    held: dict[str, dict[float, float]] = {"mats": {}, "flux": {}}
    for keep in KEEPS:
        num = num_kept(mats_BN.shape[1], keep)
        held["mats"][keep] = _held(mats_BN[mats.keep_mask(mats_BN, num)], mats_BN)
        place_BK = flux.highest(flux_BGF, num // groups)
        held["flux"][keep] = _held(flux_BGF.flatten(1).gather(1, place_BK), flux_BGF)
    return held


def _held(kept: Tensor, whole: Tensor) -> float:
    total = float(whole.sum())
    return float(kept.sum()) / total if total > 0 else 1.0


def _tokens(clip_BCTHW: Tensor) -> Tensor:
    """Return the pixels of each tubelet, (B, T, L, D)."""
    tubes = clip_BCTHW.unfold(2, HOST.tubelet, HOST.tubelet)
    tubes = tubes.unfold(3, HOST.patch, HOST.patch).unfold(4, HOST.patch, HOST.patch)
    return tubes.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(2, 3)


def saving_of(size: str) -> Callable[[float], float]:
    """Return what a share of the tokens kept by RLT saves of the MACs of a host of some size.

    Attention is quadratic and the rest linear in the tokens, so three clips give all others.
    """
    config = videomae.Config(**videomae.SIZES[size])
    generator = torch.Generator().manual_seed(0)
    still = torch.zeros(3, 3, CLIP.frames, CLIP.size, CLIP.size)
    noise = torch.randn(still.shape[1:], generator=generator)
    still[1, :, :, : CLIP.size // 2] = noise[:, :, : CLIP.size // 2]
    still[2] = noise
    trace = cost.foresee(config, still, (rlt.Config(tau=0.1),))
    share_B = cost.tokens_by_clip(trace) / math.prod(config.grid)
    parts = cost.macs_by_clip(trace)
    macs_B = np.sum([*parts.values()], axis=0)
    dense = macs_B[2] - parts["select"][2]  # all of the noise is kept
    curve = np.polyfit(share_B, macs_B / dense, 2)
    return lambda share: 1 - float(np.polyval(curve, share))
