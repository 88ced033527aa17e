"""From stored frames to the clips of a batch: which frames, at which size, with whose seed.

Two ways to sample. `dense`: a clip of `frames` frames spans `frames * stride` frames of its video;
training starts it at random, evaluation at the middle of each of `views` equal parts; videos that
are too short repeat their last frame. `segments`: a clip spans its whole video, a frame from each
of `frames` equal parts, at random in training and at the same place of all parts in evaluation.

The flexible grid (Flux, arXiv 2503.14237): each batch of a training has a number of frames and a
side of its own, drawn among those whose tokens lie between two limits. More frames are denser,
never longer. Deviation from the official code: a step's pair depends on the seed and the step
alone, one for all ranks, so that resume is exact and no rank waits for one with larger clips; and
a size that is no whole number of patches is refused, not cut.

Legend: B clips, C T H W video on the device, T H W C uint8 from the decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from workloads import cache, footage, frames
from workloads.mistakes import Mistake

REVISION = 3
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a model sees of a video."""

    frames: int = 16
    """Frames of a clip."""
    stride: float = 4.0
    """Frames of the video from one frame of the clip to the next; need not be whole. Not read where
    clips are sampled by segments."""
    sampling: Literal["dense", "segments"] = "dense"
    """A stretch of the video at one stride, or a frame from each of equal parts of all of it."""
    size: int = 224
    """Side of the square clip, pixels."""
    fit: Literal["squash", "crop"] = "squash"
    """Squash the whole frame into the square, or scale the short side and crop the middle."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride <= 0 or self.size < 1:
            shown = f"frames={self.frames}, stride={self.stride}, size={self.size}"
            raise Mistake(f"clip: {shown} must be above 0")

    @property
    def span(self) -> int:
        """Frames of a video that a clip needs; a shorter one repeats frames."""
        if self.sampling == "segments":
            return self.frames
        return int((self.frames - 1) * self.stride) + 1


def seed_of(*parts: int) -> int:
    """Return a seed in [0, 2^63) for a tuple of numbers: the same everywhere, unlike for others."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class View(NamedTuple):
    """One of the clips of a video whose predictions are averaged."""

    place: int
    num: int


Start = float | View
"""Where in its video a clip lies: a draw from [0, 1) in training, a view in evaluation."""


def frame_indices(num_frames: int, config: Config, start: Start) -> list[int]:
    """Return which frames of a video a clip shows.

    Args:
        num_frames: frames of the video.
        config: length and stride of the clip.
        start: a view, or a draw: dense, 0 is as early and 1 as late as possible; for segments, it
            stands for a draw in each of them.
    """
    if config.sampling == "segments":
        if isinstance(start, View):
            return segment_middles(num_frames, config.frames, start)
        return segment_draws(num_frames, config.frames, start)
    place = view_start(*start) if isinstance(start, View) else start
    spare = max(num_frames - config.span, 0)
    first = min(int(place * (spare + 1)), spare)  # each place has an equal share of [0, 1)
    last = num_frames - 1
    return [min(first + int(i * config.stride), last) for i in range(config.frames)]


def view_start(view: int, num_views: int) -> float:
    """Return where a view starts: the middle of its share of the video."""
    return (view + 0.5) / num_views


def segment_middles(num_frames: int, length: int, view: View) -> list[int]:
    """Return a frame from each of `length` equal parts, at the same place in all of them.

    With one view that is their middle; several divide the part. Halves round to even, as in the
    official code.
    """
    part, last = (num_frames - 1) / length, num_frames - 1
    offset = int(part / (view.num + 1) * (view.place + 1))
    return [min(round(part * i) + offset, last) for i in range(length)]


def segment_draws(num_frames: int, length: int, draw: float) -> list[int]:
    """Return a random frame from each of `length` equal parts, whose ends belong to both sides."""
    part, last = (num_frames - 1) / length, num_frames - 1
    rng = np.random.default_rng(int(draw * 2**53))  # all the bits of a draw
    ends = [round(part * i) for i in range(length + 1)]
    drawn = rng.integers(ends[:-1], ends[1:], endpoint=True)
    return [min(int(frame), last) for frame in drawn]


def dense_indices(num_frames: int, length: int, step: int, start: int) -> list[int]:
    """Return the frames of a clip as the loaders of VideoMAE and its kin read them, from 0.

    Every `step`-th frame from `start` on. Where the video ends, the last frame reached repeats; a
    step that would land on the video's very last frame is not taken.

    Args:
        num_frames: frames of the video.
        length: frames of the clip.
        step: frames of the video from one to the next.
        start: the first frame, counted from 1 as those loaders draw it.
    """
    taken = max((num_frames - 1 - start) // step, 0)  # steps that end before the last frame
    return [start - 1 + min(i, taken) * step for i in range(length)]


class Shape(NamedTuple):
    """Length and side of a clip, and the tokens that it has."""

    frames: int
    size: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Grids:
    """The flexible grid of a training: shapes of which each batch draws one; () is off."""

    frames: tuple[int, ...] = ()
    """Frames of a clip that may be drawn."""
    sizes: tuple[int, ...] = ()
    """Sides of a clip that may be drawn, pixels."""
    least: int = 1
    """Fewest tokens of a clip."""
    most: int = 6144
    """Most tokens of a clip; the released scripts of Flux draw from 2 048 to 6 144."""

    def legal(self, patch: int, tubelet: int = 1) -> tuple[Shape, ...]:
        """Return the shapes inside the limits, shortest and smallest first; () where it is off.

        Whole patches are counted; whether they fill the clip is for the host to say.

        Raises:
            Mistake: there are none.
        """
        shapes = [
            Shape(frames, size, frames // tubelet * (size // patch) ** 2)
            for frames in sorted({*self.frames})
            for size in sorted({*self.sizes})
        ]
        fitting = tuple(shape for shape in shapes if self.least <= shape.tokens <= self.most)
        if not fitting and (self.frames or self.sizes):
            counts = [shape.tokens for shape in shapes] or [0]
            what = f"grids: no shape has {self.least} to {self.most} tokens"
            raise Mistake(what, f"these have {min(counts)} to {max(counts)}: widen least and most")
        return fitting


def draw_shape(shapes: Sequence[Shape], seed: int, step: int) -> Shape:
    """Return the shape of all clips of a step, on all ranks: a uniform draw."""
    drawn = np.random.default_rng([seed, step, len(shapes)]).integers(len(shapes))
    return shapes[int(drawn)]


def shaped(config: Config, shape: Shape) -> Config:
    """Return a clip of another length and side that spans the same time of its video."""
    stride = config.stride * config.frames / shape.frames
    return replace(config, frames=shape.frames, size=shape.size, stride=stride)


def fit(frames_THWC: np.ndarray, config: Config) -> np.ndarray:
    """Return square frames of the clip's size."""
    if config.fit == "crop":
        return frames.square(frames_THWC, config.size)
    return frames.resize(frames_THWC, config.size, config.size)


class Video(Protocol):
    """All native-rate frames of a clip, uint8 T H W C: an array, or what is yet to be decoded."""

    def __len__(self) -> int: ...
    def __getitem__(self, chosen: list[int], /) -> np.ndarray: ...


class Request(NamedTuple):
    """What a batch is made of."""

    ids: tuple[int, ...]
    config: Config
    starts: tuple[Start, ...]


class Feed(Protocol):
    """Whoever makes batches before they are asked for. What it makes is what `batch_of` makes."""

    def expect(self, requests: Iterator[Request]) -> None:
        """Hear what will be asked for, in this order, and nothing of what was said before."""

    def take(self, request: Request) -> np.ndarray | None:
        """Return a batch as `batch_of` does, None if the request was not expected now."""


@dataclass
class Meter:
    """What a process spent on its clips."""

    wait_s: float = 0.0
    """In `ClipSet.prepare`, which is when a stage does nothing else."""
    decoded: int = 0
    """Videos that were decoded for it, each time counted."""


def batch_of(videos: Sequence[Video], config: Config, starts: Sequence[Start]) -> np.ndarray:
    """Return a clip of each video, uint8 (B, T, H, W, C)."""
    shape = len(videos), config.frames, config.size, config.size, 3
    batch_BTHWC = np.empty(shape, np.uint8)
    for clip_THWC, video, start in zip(batch_BTHWC, videos, starts, strict=True):
        clip_THWC[:] = fit(video[frame_indices(len(video), config, start)], config)
    return batch_BTHWC


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
    frames_of: Callable[[int], Video]
    """All native-rate frames of a clip."""
    device: torch.device = CPU
    feed: Feed | None = None
    """Who makes batches ahead; without one they are made when they are asked for."""
    meter: Meter = field(default_factory=Meter, compare=False)

    def ids(self, split: str) -> tuple[int, ...]:
        """Return the readable clips of a split.

        Raises:
            Mistake: there are none.
        """
        if not self.splits.get(split):
            raise Mistake(f"no clips to read in the split {split!r}", "see the list of bad videos")
        return self.splits[split]

    def load(self, ids: Sequence[int], config: Config, starts: Sequence[Start]) -> Tensor:
        """Return clips as uint8 (B, C, T, H, W) on the device; `starts` as in `frame_indices`."""
        return self.send(self.prepare(ids, config, starts))

    def expect(self, requests: Iterable[Request]) -> None:
        """Say which batches will be asked for, in this order; it changes nothing but the time."""
        if self.feed is not None:
            self.feed.expect(iter(requests))

    def prepare(self, ids: Sequence[int], config: Config, starts: Sequence[Start]) -> np.ndarray:
        """Return clips as uint8 (B, T, H, W, C) in memory; see `load`."""
        begun = time.perf_counter()
        request = Request(tuple(ids), config, tuple(starts))
        batch = None if self.feed is None else self.feed.take(request)
        if batch is None:
            videos = [self.frames_of(clip_id) for clip_id in ids]
            self.meter.decoded += sum(isinstance(video, footage.Unstored) for video in videos)
            batch = batch_of(videos, config, starts)
        self.meter.wait_s += time.perf_counter() - begun
        return batch

    def send(self, batch_BTHWC: np.ndarray) -> Tensor:
        """Return what `prepare` gave as a model takes it: (B, C, T, H, W), on the device."""
        batch = torch.from_numpy(batch_BTHWC).to(self.device, non_blocking=True)
        return batch.permute(0, 4, 1, 2, 3)

    def labels_of(self, ids: Sequence[int]) -> Tensor:
        """Return the classes of some clips, (B,), on the device."""
        return torch.tensor([self.labels[i] for i in ids], device=self.device)


def open_clips(folder: Path, device: torch.device = CPU, cached: bool = True) -> ClipSet:
    """Return the clips of a view of the frame cache; `cached=False` decodes all that is asked."""
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
        frames_of=footage.Frames(folder, entries, cached),
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
