"""The frame cache: native-rate frames of a clip set as a memory map, written once, read often.

    index.parquet     a row a clip: id, name, label, split, where its frames lie, or why not
    cache.json        classes, cap on the short side; written last: a cache without it is not there
    shard-<id>.u8     uint8 T H W C frames of some clips, back to back

Frame choice and resize come after the cache, so temporal jitter, views and other grids are not
frozen by it, and a result is the same with it and without.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workloads import frames, readers
from workloads.readers import Decoder

MOST_FRAMES = 600  # of a video, from its start; 20 seconds at 30 frames a second


@dataclass(frozen=True)
class Entry:
    """Where the frames of a clip lie."""

    clip: int
    name: str
    label: int
    split: str
    shard: str = ""
    offset: int = 0
    frames: int = 0
    height: int = 0
    width: int = 0
    decoder: Decoder = "auto"
    """How to read the video."""
    reason: str = ""
    """Why it could not be read; empty if it could."""


def write_shard(folder: Path, root: Path, wanted: Iterable[Entry], short_side: int) -> list[Entry]:
    """Decode some clips into a new shard and return their entries, unreadable ones included.

    Args:
        folder: of the cache.
        root: that clip names are relative to.
        wanted: which clips, without a place yet.
        short_side: cap on the short side of the frames, pixels.
    """
    shard = f"shard-{uuid.uuid4().hex[:12]}.u8"
    entries, offset = [], 0
    with (folder / shard).open("wb") as file:
        for entry in wanted:
            try:
                frames_THWC = readers.read(
                    root / entry.name, limit=MOST_FRAMES, decoder=entry.decoder
                )
            except readers.UnreadableVideo as error:
                entries.append(Entry(**{**asdict(entry), "reason": error.reason}))
                continue
            frames_THWC = np.ascontiguousarray(frames.cap(frames_THWC, short_side))
            file.write(frames_THWC.data)
            num, height, width, _ = frames_THWC.shape
            place = {"shard": shard, "offset": offset, "frames": num}
            entries.append(Entry(**{**asdict(entry), **place, "height": height, "width": width}))
            offset += frames_THWC.nbytes
    return entries


def publish(folder: Path, entries: Iterable[Entry], names: tuple[str, ...]) -> None:
    """Make a cache whole: its index, then the file that says it is there."""
    ordered = sorted(entries, key=lambda entry: entry.clip)
    table = pa.Table.from_pylist([asdict(entry) for entry in ordered])
    pq.write_table(table, folder / "index.parquet")
    for path in folder.glob("shard-*.u8"):
        if path.name not in {entry.shard for entry in ordered}:
            path.unlink()  # left by a task that was killed and run again
    beside = folder / ".cache.json"
    beside.write_text(json.dumps({"classes": names}))
    beside.replace(folder / "cache.json")


def is_whole(folder: Path) -> bool:
    """Say whether a cache is there."""
    return (folder / "cache.json").exists()


def index(folder: Path) -> list[Entry]:
    """Return the entries of a cache, by clip id."""
    return [Entry(**row) for row in pq.read_table(folder / "index.parquet").to_pylist()]


def classes(folder: Path) -> tuple[str, ...]:
    """Return the class names of a cache, by label."""
    return tuple(json.loads((folder / "cache.json").read_text())["classes"])


class Frames:
    """All frames of a clip, by id, as views of the files; shards are mapped when first read."""

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        self.folder, self.entries = folder, entries
        self._shards: dict[str, np.ndarray] = {}

    def __call__(self, clip_id: int) -> np.ndarray:
        """Return the frames of a clip, uint8 (T, H, W, C)."""
        entry = self.entries[clip_id]
        if entry.shard not in self._shards:
            self._shards[entry.shard] = np.memmap(self.folder / entry.shard, mode="r")
        end = entry.offset + entry.frames * entry.height * entry.width * 3
        flat = self._shards[entry.shard][entry.offset : end]
        return flat.reshape(entry.frames, entry.height, entry.width, 3)
