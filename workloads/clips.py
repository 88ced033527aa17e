"""From stored frames to the clips of a batch: which frames, at which size, with whose seed.

A clip of `frames` frames spans `frames * stride` frames of its video. Training starts it at random,
evaluation at the middle (or at the middle of each of `views` equal parts). Videos that are too
short repeat their last frame.

Legend: B clips, C T H W video on the device, T H W C uint8 from the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workloads import cache, frames
from workloads.mistakes import Mistake

REVISION = 2
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a model sees of a video."""

    frames: int = 16
    """Frames of a clip."""
    stride: float = 4.0
    """Frames of the video from one frame of the clip to the next; need not be whole."""
    size: int = 224
    """Side of the square clip, pixels."""
    fit: Literal["squash", "crop"] = "squash"
    """Squash the whole frame into the square, or scale the short side and crop the middle."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride <= 0 or self.size < 1:
            shown = f"frames={self.frames}, stride={self.stride}, size={self.size}"
            raise Mistake(f"clip: {shown} must be above 0")


def seed_of(*parts: int) -> int:
    """Return a seed in [0, 2^63) for a tuple of numbers: the same everywhere, unlike for others."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def frame_indices(num_frames: int, config: Config, start: float) -> list[int]:
    """Return which frames of a video a clip shows.

    Args:
        num_frames: frames of the video.
        config: length and stride of the clip.
        start: 0 = as early as possible, 1 = as late as possible.
    """
    span = int((config.frames - 1) * config.stride) + 1
    spare = max(num_frames - span, 0)
    first = min(int(start * (spare + 1)), spare)  # each place has an equal share of [0, 1)
    last = num_frames - 1
    return [min(first + int(i * config.stride), last) for i in range(config.frames)]


def view_start(view: int, num_views: int) -> float:
    """Return where a view starts: the middle of its share of the video."""
    return (view + 0.5) / num_views


def fit(frames_THWC: np.ndarray, config: Config) -> np.ndarray:
    """Return square frames of the clip's size."""
    if config.fit == "crop":
        return frames.square(frames_THWC, config.size)
    return frames.resize(frames_THWC, config.size, config.size)


@dataclass(frozen=True)
class ClipSet:
    """The clips that a stage reads. Whatever is behind `frames_of` must not change a number."""

    names: tuple[str, ...]
    """Path of each clip, by id."""
    labels: tuple[int, ...]
    """Class of each clip, by id."""
    classes: tuple[str, ...]
    splits: dict[str, tuple[int, ...]]
    """Ids of the readable clips of each split."""
    frames_of: Callable[[int], np.ndarray]
    """All native-rate frames of a clip, uint8 T H W C, possibly a view of a file."""
    device: torch.device = CPU

    def ids(self, split: str) -> tuple[int, ...]:
        """Return the readable clips of a split.

        Raises:
            Mistake: there are none.
        """
        if not self.splits.get(split):
            raise Mistake(f"no clips to read in the split {split!r}", "see the list of bad videos")
        return self.splits[split]

    def load(self, ids: Sequence[int], config: Config, starts: Sequence[float]) -> Tensor:
        """Return clips as uint8 (B, C, T, H, W) on the device; `starts` as in `frame_indices`."""
        clips = []
        for clip_id, start in zip(ids, starts, strict=True):
            frames_THWC = self.frames_of(clip_id)
            chosen = frame_indices(len(frames_THWC), config, start)
            clips.append(fit(frames_THWC[chosen], config))
        batch_BTHWC = torch.from_numpy(np.stack(clips)).to(self.device, non_blocking=True)
        return batch_BTHWC.permute(0, 4, 1, 2, 3)

    def labels_of(self, ids: Sequence[int]) -> Tensor:
        """Return the classes of some clips, (B,), on the device."""
        return torch.tensor([self.labels[i] for i in ids], device=self.device)


def open_clips(folder: Path, device: torch.device = CPU) -> ClipSet:
    """Return the clips of a frame cache."""
    entries = cache.index(folder)
    splits: dict[str, list[int]] = {}
    for entry in entries:
        if not entry.reason:
            splits.setdefault(entry.split, []).append(entry.clip)
    return ClipSet(
        names=tuple(entry.name for entry in entries),
        labels=tuple(entry.label for entry in entries),
        classes=cache.classes(folder),
        splits={split: tuple(ids) for split, ids in splits.items()},
        frames_of=cache.Frames(folder, entries),
        device=device,
    )


@dataclass(frozen=True)
class Order:
    """The endless order in which training sees clips: a new permutation each epoch.

    A step's clips depend on the seed and the step alone, so a checkpoint holds a position and
    resume is exact. Each rank takes a run of the batch, so that neighbours stay together.
    """

    ids: tuple[int, ...]
    batch: int
    seed: int

    def at(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        """Return the (epoch, clip id) pairs of a rank's share of a step."""
        share = self.batch // world
        first = step * self.batch + rank * share
        places = [divmod(place, len(self.ids)) for place in range(first, first + share)]
        orders = {epoch: self._permutation(epoch) for epoch in {epoch for epoch, _ in places}}
        return [(epoch, self.ids[orders[epoch][place]]) for epoch, place in places]

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.ids))
