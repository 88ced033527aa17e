"""How much the frame cache may take, and what goes when there is no room: LRU, by study.

Whoever writes frames claims their bytes first. What no running study needs goes, what was used
longest ago first; if that is not enough, the frames are not kept and their clips are decoded when
they are wanted. Frames may go while somebody has them mapped: a file that is unlinked lives until
the last map of it is gone.

    cache/frames/...           see `workloads/cache.py`
    cache/views/<key>/keys     the frames that the studies on a manifest need
    cache/views/<key>/in-use   held, shared, by each driver that runs one of them
    cache/used                 bytes that are claimed; counted anew where it is torn
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orchestrator.files import write_bytes
from orchestrator.lock import Lock
from workloads import cache
from workloads.cache import HEADER


class Stored(NamedTuple):
    """Frames of a video that are there."""

    used: float
    """When a study began that needs them, as a time of the system."""
    size: int
    path: Path


@dataclass(frozen=True)
class Room:
    """The bound on the frames of a cache."""

    root: Path
    """Of the cache."""
    limit: int
    """Bytes; 0 keeps no frames and looks for none."""

    @property
    def frames(self) -> Path:
        """Where frames lie."""
        return self.root / "frames"

    def claim(self, num_bytes: int) -> bool:
        """Take room for frames that are about to be written; say whether there is any."""
        if num_bytes + HEADER > self.limit:
            return False
        with self._alone():
            used = self._used()
            if used + num_bytes + HEADER > self.limit:
                used = self._evict(self.limit - num_bytes - HEADER)
            fits = used + num_bytes + HEADER <= self.limit
            self._note(used + (num_bytes + HEADER) * fits)
            return fits

    def tidy(self) -> None:
        """Remove what killed writers left and what is beyond the limit; count what is there."""
        with self._alone():
            self._sweep()
            self._note(self._evict(self.limit))

    def left(self) -> int:
        """Return how many bytes may be claimed, if all goes that no running study needs."""
        pinned = self._pinned()
        return self.limit - sum(one.size for one in self._stored() if one.path.stem in pinned)

    def need(self, view: Path, keys: Iterable[str]) -> None:
        """Note which frames the studies on a manifest need, and that they were used now."""
        write_bytes(view / "keys", "\n".join(keys).encode())
        for key in keys:
            with suppress(OSError):
                os.utime(cache.place(self.frames, key))

    def _alone(self) -> Lock:
        lock = Lock(self.root / "lock")
        while not lock.take():
            time.sleep(0.002)
        return lock

    def _used(self) -> int:
        try:
            return int((self.root / "used").read_text())
        except (OSError, ValueError):
            return sum(one.size for one in self._stored())

    def _note(self, used: int) -> None:
        (self.root / "used").write_text(str(used))

    def _stored(self) -> list[Stored]:
        found = []
        for path in self.frames.glob("??/*.npy"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append(Stored(stat.st_mtime, stat.st_size, path))
        return found

    def _evict(self, target: int) -> int:
        """Remove frames until they take no more than `target`; return what they take."""
        stored = self._stored()
        used = sum(one.size for one in stored)
        if used <= target:
            return used
        pinned = self._pinned()
        for one in sorted(stored):
            if used <= target:
                break
            if one.path.stem not in pinned:
                one.path.unlink(missing_ok=True)
                used -= one.size
        return used

    def _pinned(self) -> set[str]:
        """Return the frames that running studies need."""
        keys: set[str] = set()
        for path in self.root.glob("views/*/keys"):
            with Lock(path.parent / "in-use") as free:
                if not free.take():
                    keys |= {*path.read_text().split()}
        return keys

    def _sweep(self) -> None:
        for path in self.frames.glob(f"??/.*{cache.PART}"):
            # Its writer would hold it, and may give it its name just now: so write nothing to it.
            with suppress(OSError), path.open("rb") as left_behind:
                fcntl.flock(left_behind, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)


def room_of(store: Path, gib: float | None = None) -> Room:
    """Return the room of a store's cache.

    Args:
        store: its folder.
        gib: the limit; None is half of what the cache and the free space of its disk are together.
    """
    root = store / "cache"
    if gib is not None:
        return Room(root, int(gib * 2**30))
    folder = next(place for place in (root, *root.parents) if place.is_dir())
    used = sum(one.size for one in Room(root, 0)._stored())
    return Room(root, (used + shutil.disk_usage(folder).free) // 2)


def pin(view: Path) -> Lock:
    """Keep the frames of a view from being removed, until the lock is released."""
    lock = Lock(view / "in-use", shared=True)
    while not lock.take():  # somebody looks whether it is in use
        time.sleep(0.002)
    return lock
