"""The frame cache: what was decoded comes back bit for bit, and only a whole cache is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from barcodes import barcode, numbers_of, write

from workloads import cache, frames, readers
from workloads.cache import Entry, Frames


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of other sizes and lengths, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for name, first, size in (
        ("a.mp4", 0, (64, 96)),
        ("b.mp4", 50, (96, 64)),
        ("c.mp4", 90, (32, 64)),
    ):
        write(folder / name, (barcode(first + i, *size) for i in range(5 + first // 10)))
    (folder / "bad.mp4").write_bytes(b"this is no video")
    return folder


WANTED = [
    Entry(clip=0, name="b.mp4", label=1, split="train"),
    Entry(clip=1, name="bad.mp4", label=0, split="val"),
    Entry(clip=2, name="a.mp4", label=0, split="train"),
    Entry(clip=3, name="c.mp4", label=1, split="val"),
]


def test_frames_come_back_as_they_were_decoded(root: Path, tmp_path: Path) -> None:
    entries = cache.write_shard(tmp_path, root, WANTED[2:], short_side=64)
    entries += cache.write_shard(tmp_path, root, WANTED[:2], short_side=64)
    cache.publish(tmp_path, entries, ("x", "y"))
    found = cache.index(tmp_path)
    assert [entry.clip for entry in found] == [0, 1, 2, 3]  # by id, whatever came first
    frames_of = Frames(tmp_path, found)
    for clip_id in (0, 2, 3):
        frames_THWC = frames_of(clip_id)
        assert frames_THWC.dtype == np.uint8
        assert np.array_equal(frames_THWC, readers.read(root / found[clip_id].name))
    assert numbers_of(frames_of(0)) == list(range(50, 60))


def test_frames_are_views_of_the_file(root: Path, tmp_path: Path) -> None:
    entries = cache.write_shard(tmp_path, root, WANTED[2:], short_side=64)
    frames_of = Frames(tmp_path, entries)
    assert isinstance(frames_of(1), np.memmap)
    assert not frames_of(1).flags.writeable
    assert np.shares_memory(frames_of(1), frames_of(1))


def test_a_large_short_side_is_capped_and_a_small_one_is_left(root: Path, tmp_path: Path) -> None:
    entries = cache.write_shard(tmp_path, root, WANTED, short_side=48)
    sizes = {entry.name: (entry.height, entry.width) for entry in entries if not entry.reason}
    assert sizes == {"a.mp4": (48, 72), "b.mp4": (72, 48), "c.mp4": (32, 64)}
    resized = frames.resize(readers.read(root / "a.mp4"), 48, 72)
    assert np.array_equal(Frames(tmp_path, entries)(2), resized)


def test_an_unreadable_video_is_an_entry_with_its_reason(root: Path, tmp_path: Path) -> None:
    missing = Entry(clip=4, name="missing.mp4", label=0, split="train")
    entries = cache.write_shard(tmp_path, root, [*WANTED, missing], short_side=64)
    assert [bool(entry.reason) for entry in entries] == [False, True, False, False, True]
    assert "cannot be decoded" in entries[1].reason
    assert entries[4].reason == "no such file"
    assert replace(entries[1], reason="") == WANTED[1]
    cache.publish(tmp_path, entries, ("x", "y"))
    assert cache.index(tmp_path)[1] == entries[1]


def test_long_videos_end_at_the_limit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MOST_FRAMES", 3)
    entries = cache.write_shard(tmp_path, root, WANTED[:1], short_side=64)
    assert numbers_of(Frames(tmp_path, entries)(0)) == [50, 51, 52]


def test_a_cache_is_there_when_it_is_whole(root: Path, tmp_path: Path) -> None:
    entries = cache.write_shard(tmp_path, root, WANTED[:1], short_side=64)
    assert not cache.is_whole(tmp_path)
    cache.publish(tmp_path, entries, ("x", "y"))
    assert cache.is_whole(tmp_path)
    assert cache.classes(tmp_path) == ("x", "y")


def test_shards_of_killed_tasks_are_removed(root: Path, tmp_path: Path) -> None:
    cache.write_shard(tmp_path, root, WANTED[2:], short_side=64)  # nobody hears of it
    entries = cache.write_shard(tmp_path, root, WANTED[2:], short_side=64)
    assert len(list(tmp_path.glob("shard-*.u8"))) == 2
    cache.publish(tmp_path, entries, ("x", "y"))
    assert [path.name for path in tmp_path.glob("shard-*.u8")] == [entries[0].shard]


def test_classes_may_have_any_name(root: Path, tmp_path: Path) -> None:
    names = ('say "hi"', "B\u00e4r", "")
    cache.publish(tmp_path, cache.write_shard(tmp_path, root, WANTED[:1], 64), names)
    assert cache.classes(tmp_path) == names
