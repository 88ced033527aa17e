"""The synthetic data set: moving shapes in real mp4 files, laid out like class folders of a user's.

    folder = write(Config(), Path("shapes"), processes=2)    # 4 000 clips: 12 s
    manifest = load(folder, trains=True)

A class is a direction and a speed, such as `right-slow`; clip `index` of a split has class
`index % classes`. What is in a clip depends on the seed, its split and its index, and on nothing
else: not on the number of clips or processes. Writing may be killed at any moment and repeated:
every file is renamed into place when it is whole, and clips that are there are not drawn again.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from workloads.datasets.shapes import DIRECTIONS, SPEEDS, Look, render
from workloads.datasets.splits import SIDES
from workloads.knobs import key_of
from workloads.mistakes import Mistake

REVISION = 1  # raised when the same Config would give other clips
CLAIM = ".claimed"  # written first: whose clips the folder holds
MARKER = ".complete"  # written last: that it holds all of them
BATCH = 25  # clips drawn by a process between two reports
# x264's fastest routines do not give the same bits each time (seen in 1 clip of 100); these do.
CANONICAL = {"x264-params": "cpu-independent=1"}
CODEC = {"preset": "veryfast", "crf": "23", "g": "16", "bf": "0", "threads": "1", **CANONICAL}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which clips there are, and what they look like."""

    train: int = 3200
    """Clips to train on."""
    val: int = 400
    """Clips to select on."""
    test: int = 400
    """Clips to confirm on."""
    side: int = 40
    """Width and height, pixels; even, as the codec halves it."""
    frames: int = 16
    """Frames a clip."""
    fps: int = 25
    """Frames a second in the file; no clip looks different for it."""
    directions: tuple[str, ...] = ("right", "left", "down", "up")
    """Directions of motion that are told apart."""
    speeds: tuple[str, ...] = ("slow", "quick")
    """Speeds of motion that are told apart."""
    look: Look = field(default_factory=Look)
    """What is drawn, whatever the class."""
    seed: int = 0
    """Another seed draws other clips."""

    def __post_init__(self) -> None:
        if self.side % 2 or self.side < 16:
            raise ValueError(f"side={self.side} must be even and at least 16")
        if self.frames < 8:
            raise ValueError(f"frames={self.frames} must be at least 8: a quick motion takes 2")
        if not {*self.directions} <= {*DIRECTIONS}:
            raise ValueError(f"directions={self.directions} must be among {tuple(DIRECTIONS)}")
        if not {*self.speeds} <= {*SPEEDS}:
            raise ValueError(f"speeds={self.speeds} must be among {SPEEDS}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes by label."""
        return tuple(f"{way}-{speed}" for way in self.directions for speed in self.speeds)


def write(
    config: Config,
    folder: Path,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `folder/{train,val,test}/<class>/<index>.mp4` and return the folder.

    Args:
        config: which clips; a folder holds the clips of one config.
        folder: made if it is not there; complete for this config, it is returned at once.
        processes: how many draw and encode.
        progress: called now and then with the clips written so far and those in all.

    Raises:
        Mistake: the folder holds something else.
    """
    _claim(folder, key(config))
    if (folder / MARKER).exists():
        return folder
    done, total = 0, config.train + config.val + config.test
    for count in _write_batches(config, folder, processes):
        done += count
        if progress is not None:
            progress(done, total)
    _publish(folder / MARKER, key(config).encode())
    return folder


def key(config: Config) -> str:
    """Return a name for these very clips, such as for their folder."""
    return key_of((REVISION, config))


def _claim(folder: Path, name: str) -> None:
    """Make an empty folder the one for these clips, or find that it is."""
    folder.mkdir(parents=True, exist_ok=True)
    has_files = any(not path.name.startswith(".") for path in folder.iterdir())
    claim = folder / CLAIM
    if not claim.exists():
        if has_files:
            raise Mistake(f"{folder}: holds other files", "name an empty folder for the clips")
        _publish(claim, name.encode())
    elif claim.read_text() != name:
        raise Mistake(f"{folder}: holds synthetic clips of another config", "name another folder")


def _write_batches(config: Config, folder: Path, processes: int) -> Iterator[int]:
    """Write all clips, and yield the size of each batch when it is done."""
    batches = [
        (split, range(getattr(config, split))[start : start + BATCH])
        for split in SIDES
        for start in range(0, getattr(config, split), BATCH)
    ]
    work = partial(_write_batch, config, folder)
    if processes == 1:
        yield from map(work, batches)
        return
    # Spawned, for a forked process may inherit locked locks; an interrupt is the parent's affair.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap_unordered(work, batches)


def _write_batch(config: Config, folder: Path, batch: tuple[str, range]) -> int:
    split, indices = batch
    for index in indices:
        _write_clip(config, folder, split, index)
    return len(indices)


def _write_clip(config: Config, folder: Path, split: str, index: int) -> None:
    label = index % len(config.classes)
    path = folder / split / config.classes[label] / f"{index:05d}.mp4"
    if path.exists():
        return
    direction, speed = config.classes[label].split("-")
    rng = np.random.default_rng((config.seed, SIDES.index(split), index))
    clip_TSSC = render(
        config.look, direction, speed, side=config.side, frames=config.frames, rng=rng
    )
    _publish(path, encode(clip_TSSC, config.fps))


def encode(clip_THWC: np.ndarray, fps: int) -> bytes:
    """Return uint8 frames as an mp4 file: h264 as cameras and web sites store it."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=CODEC)
        stream.height, stream.width = clip_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in clip_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _publish(path: Path, content: bytes) -> None:
    """Let a file appear whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
