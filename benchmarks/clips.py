"""Clips to measure on: a user's videos, or moving shapes where there are none.

Timing a reduction on noise would be a lie: nothing repeats in it, so nothing is dropped.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from workloads import augment, clips, datasets, readers
from workloads.clips import view_start
from workloads.datasets import synthetic
from workloads.frames import cap
from workloads.models import videomae

MOST_FRAMES = 120


def load(data: Path | None, num: int, size: int, model: videomae.Config) -> tuple[Tensor, str]:
    """Return normalised clips (B, C, T, H, W) for a model, and what they are in words.

    Args:
        data: class folders or a CSV; None makes moving shapes.
        num: how many.
        size: side, pixels.
        model: whose frames and units to use.
    """
    if data is None:
        with tempfile.TemporaryDirectory() as folder:
            config = synthetic.Config(train=0, val=num, test=0, side=size, frames=model.frames)
            synthetic.write(config, Path(folder), processes=os.cpu_count() or 1)
            paths = sorted(Path(folder).rglob("*.mp4"))
            return _read(paths, size, 1.0, model), f"{num} synthetic clips of {size} px"
    manifest = datasets.load(data, trains=False)
    step = max(len(manifest.clips) // num, 1)  # spread over the classes
    paths = [manifest.root / clip.path for clip in manifest.clips[::step][:num]]
    return _read(paths, size, 2.0, model), f"{num} clips of {data}, scaled to {size} px"


def _read(paths: list[Path], size: int, stride: float, model: videomae.Config) -> Tensor:
    spec = clips.Config(frames=model.frames, stride=stride, size=size)
    frames = {i: cap(readers.read(path, limit=MOST_FRAMES), size) for i, path in enumerate(paths)}
    ids = list(frames)
    found = clips.ClipSet((), (), (), {}, frames.__getitem__)
    clip_BCTHW = found.load(ids, spec, [view_start(0, 1)] * len(ids))
    return augment.normalise(clip_BCTHW, model.mean, model.std).contiguous()


def default_data() -> Path | None:
    """Return the folder named by PARETOKEN_CLIPS, if any."""
    named = os.environ.get("PARETOKEN_CLIPS")
    return Path(named) if named else None


def device() -> torch.device:
    """Return the device that is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
