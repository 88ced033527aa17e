"""Frames of videos as stages ask for them: out of the cache, or decoded, and nobody can tell.

Where decord is proved to give PyAV's frames bit for bit (`proof.py`), it seeks to those that are
far in; elsewhere PyAV reads in order.

Legend: T H W C frames, uint8.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from workloads import cache, readers
from workloads.cache import HEADER, Entry
from workloads.mistakes import Mistake

FAR = 128  # decord lists all packets of a file to open it: as much work as these many frames
MOST_MAPS = 1024  # that a process keeps open
NO_CAP = 2**31  # on the short side of frames, pixels


@dataclass(frozen=True)
class Unstored:
    """The frames of a video that are decoded when they are asked for: as an array of frames is."""

    path: Path
    entry: Entry
    short_side: int

    def __len__(self) -> int:
        return self.entry.frames

    def __getitem__(self, chosen: Sequence[int]) -> np.ndarray:
        """Return some frames, uint8 (T, H, W, C).

        Raises:
            Mistake: the video is not the one that was counted.
        """
        try:
            stat = os.stat(self.path)
            if (stat.st_size, stat.st_mtime_ns) == (self.entry.size, self.entry.mtime_ns):
                return _chosen(self.path, chosen, self.short_side, self.entry.seeks)
            why = "it was written to"
        except OSError as error:
            why = error.strerror or str(error)
        except readers.UnreadableVideo as error:
            why = error.reason
        raise Mistake(f"{self.path}: changed since the run began ({why})", "run the same again")


class Frames:
    """All frames of a clip, by id: views of their file where there is one, else decoded.

    Args:
        folder: of a view.
        entries: its index.
        cached: whether to look for files.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry], cached: bool = True) -> None:
        facts = cache.facts(folder)
        self.entries, self.cached = entries, cached
        self.videos, self.short_side = Path(facts["videos"]), int(facts["short_side"])
        self.frames = (folder / facts["frames"]).resolve()
        # A map that stays open has its pages at hand: they need not be faulted in again.
        self._view = lru_cache(MOST_MAPS)(self._open)

    def __call__(self, clip_id: int) -> np.ndarray | Unstored:
        """Return the frames of a clip, uint8 (T, H, W, C)."""
        try:
            if self.cached:
                return self._view(clip_id)
        except OSError:
            pass  # they are gone, or never were there
        return self._unstored(self.entries[clip_id])

    def missing(self, clip_id: int) -> Unstored | None:
        """Return the frames of a clip if they must be decoded, None if they are there."""
        entry = self.entries[clip_id]
        return None if self.cached and cache.is_there(self.frames, entry) else self._unstored(entry)

    def _open(self, clip_id: int) -> np.ndarray:
        entry = self.entries[clip_id]
        return view_of(cache.place(self.frames, entry.key), entry)

    def _unstored(self, entry: Entry) -> Unstored:
        return Unstored(self.videos / entry.name, entry, self.short_side)


def view_of(path: Path, entry: Entry) -> np.ndarray:
    """Return frames of a known video as a view of their file; a tenth of the time of `cache.get`.

    Raises:
        FileNotFoundError: they are not there, or not whole.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != HEADER + entry.num_bytes:
            raise FileNotFoundError(path)
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    shape = entry.frames, entry.height, entry.width, 3
    return np.frombuffer(held, np.uint8, offset=HEADER).reshape(shape)


def whole(path: Path) -> np.ndarray | Unstored:
    """Return the frames of a video that is in no view, as large as they are.

    Raises:
        UnreadableVideo: it is none, or damaged.
    """
    entry, frames_THWC = cache.decode(Entry(0, path.name, 0, ""), path.parent, NO_CAP)
    if entry.reason:
        raise readers.UnreadableVideo(path, entry.reason)
    if frames_THWC is not None:
        return frames_THWC
    stat = path.stat()
    return Unstored(path, replace(entry, size=stat.st_size, mtime_ns=stat.st_mtime_ns), NO_CAP)


def _chosen(path: Path, numbers: Sequence[int], short_side: int, seeks: bool) -> np.ndarray:
    """Return some frames of a video as `decode` returns all of them.

    Where decord is proved to give PyAV's frames bit for bit, it seeks to those that are far in.
    """
    shrink = cache.shrink_to(short_side)
    if seeks and min(numbers) >= FAR and "decord" in readers.versions():
        ordered = sorted({*numbers})
        with suppress(readers.UnreadableVideo):  # PyAV knows better, or says why nobody can
            found = dict(zip(ordered, map(shrink, readers.sought(path, ordered)), strict=True))
            return np.stack([found[number] for number in numbers])
    return readers.read(path, numbers, decoder=cache.DECODER, shrink=shrink)
