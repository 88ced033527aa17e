"""The frame cache: native-rate frames of videos as memory maps, written once, read often.

    frames/<2>/<key>.npy           uint8 T H W C frames of a video, their short side capped
    views/<key>/index.parquet      a row a clip of a manifest: what its video holds, or why not
    views/<key>/view.json          classes, and where videos and frames lie; written last: a view
                                   without it is not there

A video's key stands for its content, the cap and the decoder, so manifests that name the same
videos share frames. Frames are written beside their place and renamed: what is half-written never
counts. They may go at any time; whoever maps them keeps them until it lets go, and what is not
there is decoded from the video, by the same functions to the same bits.

Frame choice and resize come after the cache, so temporal jitter, views and other grids are not
frozen by it.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads import frames, readers
from workloads.knobs import key_of

# Of a video whose frames are kept: 20 seconds at 30 frames a second. One clip of a longer one would
# crowd out many others, so those are decoded when they are wanted.
MOST_FRAMES = 600
# Frames of a cache, and those decoded without it, are those of one decoder: the truth, installed
# everywhere, and the faster one wherever frames are taken in order from the first on.
DECODER: Final = "pyav"
HEADER = 128  # bytes that numpy writes before the frames, whatever their shape
PART = ".part"  # how files end that are being written


@dataclass(frozen=True)
class Entry:
    """A clip of a manifest, and what is known of its video."""

    clip: int
    name: str
    label: int
    split: str
    key: str = ""
    """Of its frames."""
    size: int = 0
    """Of the file when it was hashed, bytes; with `mtime_ns`, tells that it is still the same."""
    mtime_ns: int = 0
    seeks: bool = False
    """Whether decord is proved to find every frame of it, whatever the order."""
    frames: int = 0
    """Frames that it has, counted; 0 is not known yet."""
    height: int = 0
    width: int = 0
    reason: str = ""
    """Why it could not be read; empty if it could."""
    passing: bool = False
    """Whether that may go away, for it is no fault of the content."""

    @property
    def num_bytes(self) -> int:
        """What its frames take."""
        return self.frames * self.height * self.width * 3

    @property
    def is_long(self) -> bool:
        """Whether it has more frames than are kept."""
        return self.frames > MOST_FRAMES

    @property
    def is_known(self) -> bool:
        """Whether somebody has read the video, or tried."""
        return bool(self.frames or (self.reason and not self.passing))

    def holding(self, shape: Sequence[int]) -> Entry:
        """Return the entry of a video whose frames have a shape (T, H, W, C)."""
        return replace(self, frames=shape[0], height=shape[1], width=shape[2])


def name_of(sha256: str, short_side: int) -> str:
    """Return the key of the frames of a video."""
    version = readers.versions().get(DECODER)
    return key_of([sha256, short_side, frames.REVISION, DECODER, version])[:32]


def decode(entry: Entry, root: Path, short_side: int) -> tuple[Entry, np.ndarray | None]:
    """Decode a video; return its entry, and its frames (T, H, W, C) if they may be kept.

    Args:
        entry: of a clip.
        root: that its name is relative to.
        short_side: cap on the short side of the frames, pixels.
    """
    try:
        head_THWC, count = readers.counted(
            root / entry.name, MOST_FRAMES, decoder=DECODER, shrink=shrink_to(short_side)
        )
    except readers.UnreadableVideo as error:
        return replace(entry, reason=error.reason, passing=error.passing), None
    known = entry.holding((count, *head_THWC.shape[1:]))
    return known, None if known.is_long else head_THWC


def shrink_to(short_side: int) -> readers.Shrink:
    """Return what caps the short side of a frame: each as soon as it is there."""
    return lambda frame_HWC: frames.cap(frame_HWC[None], short_side)[0]


# The frames of one video.


def place(folder: Path, key: str) -> Path:
    """Return where the frames of a key lie, if they do; `folder` is `frames` above."""
    return folder / key[:2] / f"{key}.npy"


def put(path: Path, frames_THWC: np.ndarray) -> None:
    """Write the frames of a video; nobody sees them before they are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{PART}")
    try:
        with beside.open("xb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)  # tells that somebody is at it
            np.save(file, np.ascontiguousarray(frames_THWC))
            file.flush()
            with suppress(FileNotFoundError):  # swept away before we had the lock
                beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def keep(
    entry: Entry, root: Path, short_side: int, folder: Path, claim: Callable[[int], bool]
) -> tuple[Entry, bool]:
    """Return what a video holds, and whether it was decoded for it; keep its frames.

    Args:
        entry: of a clip.
        root: that its name is relative to.
        short_side: cap on the short side of the frames, pixels.
        folder: of the frames.
        claim: whether so many bytes may be written there.
    """
    path = place(folder, entry.key)
    stored = get(path)
    if stored is not None:  # another study has decoded it, or one that was killed
        return entry.holding(stored.shape), False
    done, frames_THWC = decode(entry, root, short_side)
    if frames_THWC is not None and claim(done.num_bytes):
        put(path, frames_THWC)
    return done, True


def get(path: Path) -> np.ndarray | None:
    """Return frames as a view of their file; None where they are not, or not whole."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError):
        return None


def is_there(folder: Path, entry: Entry) -> bool:
    """Say whether the frames of a clip are there, as far as their size tells."""
    try:
        return os.stat(place(folder, entry.key)).st_size == HEADER + entry.num_bytes
    except OSError:
        return False


# The view of a manifest.


def publish(
    folder: Path,
    entries: Iterable[Entry],
    names: tuple[str, ...],
    root: Path = Path(),
    short_side: int = 0,
    frames_folder: Path | None = None,
) -> None:
    """Make a view whole: its index, then the file that says it is there.

    Args:
        folder: of the view.
        entries: of all clips.
        names: of the classes.
        root: that names of clips are relative to.
        short_side: cap on the short side of frames.
        frames_folder: where frames lie; `frames` in `folder` if none is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(entries, key=lambda entry: entry.clip)
    beside = folder / f".index.{uuid.uuid4().hex}"
    pq.write_table(pa.Table.from_pylist([asdict(entry) for entry in ordered]), beside)
    beside.replace(folder / "index.parquet")
    facts = {
        "classes": names,
        "videos": str(root.absolute()),
        "short_side": short_side,
        # Relative, so that a store may be moved as a whole.
        "frames": os.path.relpath(frames_folder or folder / "frames", folder),
    }
    beside = folder / ".view.json"
    beside.write_text(json.dumps(facts))
    beside.replace(folder / "view.json")


def make(
    folder: Path, root: Path, wanted: Iterable[Entry], short_side: int, names: tuple[str, ...]
) -> list[Entry]:
    """Decode clips into a view, here and now, and return their entries; for a notebook."""
    stored = folder / "frames"
    entries = [keep(one, root, short_side, stored, lambda size: True)[0] for one in wanted]
    publish(folder, entries, names, root, short_side)
    return entries


def is_whole(folder: Path) -> bool:
    """Say whether a view is there."""
    return (folder / "view.json").exists()


def index(folder: Path) -> list[Entry]:
    """Return the entries of a view, by clip id."""
    return [Entry(**row) for row in pq.read_table(folder / "index.parquet").to_pylist()]


def classes(folder: Path) -> tuple[str, ...]:
    """Return the class names of a view, by label."""
    return tuple(facts(folder)["classes"])


def videos(folder: Path) -> Path:
    """Return what the names of a view's clips are relative to."""
    return Path(facts(folder)["videos"])


def facts(folder: Path) -> dict[str, str]:
    """Return what a view says of all of its clips."""
    found: dict[str, str] = json.loads((folder / "view.json").read_text())
    return found
