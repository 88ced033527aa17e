"""The frame cache: what was decoded comes back bit for bit, with a file and without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from barcodes import barcode, numbers_of, write

from workloads import cache, clips, footage, frames, readers
from workloads.cache import Entry
from workloads.footage import Frames, Unstored
from workloads.mistakes import Mistake

NAMES = {"b.mp4": "train", "bad.mp4": "val", "a.mp4": "train", "c.mp4": "val"}


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


@pytest.fixture(scope="module")
def wanted(root: Path) -> list[Entry]:
    stats = {name: (root / name).stat() for name in NAMES}
    return [
        Entry(i, name, i % 2, split, f"key{i}", stats[name].st_size, stats[name].st_mtime_ns)
        for i, (name, split) in enumerate(NAMES.items())
    ]


@pytest.fixture(scope="module")
def view(root: Path, wanted: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    cache.make(folder, root, reversed(wanted), 48, ("x", "y"))
    return folder


def stored(view: Path) -> Frames:
    return Frames(view, cache.index(view))


def unstored(view: Path) -> Frames:
    return Frames(view, cache.index(view), cached=False)


def test_a_view_says_what_its_videos_hold(view: Path, root: Path) -> None:
    entries = cache.index(view)
    assert [entry.name for entry in entries] == [*NAMES]  # by id, whatever came first
    sizes = {e.name: (e.frames, e.height, e.width) for e in entries if not e.reason}
    assert sizes == {"a.mp4": (5, 48, 72), "b.mp4": (10, 72, 48), "c.mp4": (14, 32, 64)}
    assert cache.classes(view) == ("x", "y")
    assert cache.videos(view) == root


def test_an_unreadable_video_is_an_entry_with_its_reason(
    root: Path, wanted: list[Entry], view: Path
) -> None:
    bad = cache.index(view)[1]
    assert "cannot be decoded" in bad.reason
    assert replace(bad, reason="") == wanted[1]
    missing, frames_THWC = cache.decode(replace(wanted[0], name="missing.mp4"), root, 64)
    assert (missing.reason, frames_THWC) == ("no such file", None)


def test_frames_are_those_of_the_video_resized_all_at_once(view: Path, root: Path) -> None:
    frames_of = stored(view)
    for clip_id, name in ((0, "b.mp4"), (2, "a.mp4"), (3, "c.mp4")):
        whole_THWC = readers.read(root / name)
        assert np.array_equal(frames_of(clip_id), frames.cap(whole_THWC, 48))
    assert numbers_of(frames_of(0)) == list(range(50, 60))


def test_frames_are_views_of_their_file_and_outlive_it(
    wanted: list[Entry], root: Path, tmp_path: Path
) -> None:
    cache.make(tmp_path, root, wanted[:1], 48, ("x", "y"))
    frames_THWC = stored(tmp_path)(0)
    assert isinstance(frames_THWC, np.ndarray)
    assert not frames_THWC.flags.writeable
    before = np.array(frames_THWC)
    cache.place(tmp_path / "frames", "key0").unlink()
    assert np.array_equal(frames_THWC, before)


CLIP = clips.Config(frames=4, stride=2.5, size=40)


def test_clips_without_the_cache_are_those_with_it_bit_for_bit(view: Path) -> None:
    with_it, without = clips.open_clips(view), clips.open_clips(view, cached=False)
    assert isinstance(without.frames_of(0), Unstored)
    for starts in ((0.0, 0.4, 0.99), (clips.View(0, 2), clips.View(1, 2), clips.View(0, 1))):
        batches = [one.prepare((3, 0, 2), CLIP, starts) for one in (with_it, without)]
        assert np.array_equal(*batches)
    assert (with_it.meter.decoded, without.meter.decoded) == (0, 6)
    assert without.meter.wait_s > 0


@pytest.mark.parametrize("seeks", [False, True])
def test_decord_seeks_only_where_it_is_proved_and_pays(
    seeks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def noted(path: Path, indices: list[int]) -> Iterator[np.ndarray]:
        asked.append(indices)
        return sought(path, indices)

    sought = readers.sought
    monkeypatch.setattr(readers, "sought", noted)
    path = tmp_path / "long.mp4"
    write(path, (barcode(i, 96, 128) for i in range(footage.FAR + 60)))
    stat = path.stat()
    entry = Entry(0, path.name, 0, "train", "key", stat.st_size, stat.st_mtime_ns, seeks)
    (entry,) = cache.make(tmp_path / "view", tmp_path, [entry], 48, ("x",))
    whole = stored(tmp_path / "view")(0)
    near, far = [footage.FAR - 1, footage.FAR + 50], [footage.FAR + n for n in (50, 3, 50, 0, 59)]
    for chosen in (near, far):
        assert np.array_equal(unstored(tmp_path / "view")(0)[chosen], whole[chosen])
    assert asked == ([[footage.FAR + n for n in (0, 3, 50, 59)]] if seeks else [])


@pytest.mark.parametrize("damage", [None, b"", b"no array", "half"])
def test_frames_that_are_gone_or_torn_are_decoded(
    damage: bytes | str | None, wanted: list[Entry], root: Path, tmp_path: Path
) -> None:
    (entry,) = cache.make(tmp_path, root, wanted[:1], 48, ("x", "y"))
    expected = np.array(stored(tmp_path)(0))
    path = cache.place(tmp_path / "frames", entry.key)
    whole = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    assert not cache.is_there(tmp_path / "frames", entry)
    found = stored(tmp_path)(0)
    assert isinstance(found, Unstored)
    assert stored(tmp_path).missing(0) == found
    assert np.array_equal(found[[3, 0, 3]], expected[[3, 0, 3]])
    cache.keep(wanted[0], root, 48, tmp_path / "frames", lambda size: True)  # is repaired
    assert np.array_equal(stored(tmp_path)(0), expected)
    assert stored(tmp_path).missing(0) is None


def test_what_is_stored_is_not_decoded_again(
    wanted: list[Entry], root: Path, tmp_path: Path
) -> None:
    kept = [cache.keep(wanted[0], root, 48, tmp_path, lambda size: True) for _ in range(2)]
    assert kept[0][0] == kept[1][0]
    assert [was_decoded for _, was_decoded in kept] == [True, False]


def test_without_room_a_video_is_only_counted(
    wanted: list[Entry], root: Path, tmp_path: Path
) -> None:
    asked: list[int] = []
    counted, _ = cache.keep(wanted[0], root, 48, tmp_path, lambda size: bool(asked.append(size)))
    assert asked == [counted.num_bytes] == [10 * 72 * 48 * 3]
    assert list(tmp_path.rglob("*")) == []


def test_a_video_that_was_written_to_is_refused(view: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_bytes((root / "b.mp4").read_bytes())
    entry = cache.index(view)[0]
    with pytest.raises(Mistake, match=r"b.mp4: changed since the run began \(it was written to\)"):
        Unstored(tmp_path / "b.mp4", entry, 48)[[0]]
    with pytest.raises(Mistake, match="No such file"):
        Unstored(tmp_path / "none.mp4", entry, 48)[[0]]


def test_long_videos_are_counted_and_decoded_when_they_are_wanted(
    root: Path, wanted: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MOST_FRAMES", 8)
    long, short = cache.make(tmp_path, root, [wanted[0], wanted[2]], 96, ("x", "y"))
    assert (long.frames, long.is_long, short.frames, short.is_long) == (10, True, 5, False)
    found = cache.get(cache.place(tmp_path / "frames", long.key))
    assert found is None
    assert isinstance(stored(tmp_path)(1), np.ndarray)
    for frames_of in (stored, unstored):
        assert len(frames_of(tmp_path)(0)) == 10
        assert numbers_of(frames_of(tmp_path)(0)[[9, 0, 2]]) == [59, 50, 52]


@pytest.mark.parametrize("most", [8, 600])
def test_a_video_in_no_view_is_read_whole(
    most: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MOST_FRAMES", most)
    video = footage.whole(root / "b.mp4")
    assert len(video) == 10
    assert isinstance(video, Unstored) == (most == 8)
    assert np.array_equal(video[[9, 0]], readers.read(root / "b.mp4", (9, 0)))
    with pytest.raises(readers.UnreadableVideo, match=r"bad.mp4: cannot be decoded"):
        footage.whole(root / "bad.mp4")


def test_a_view_is_there_when_it_is_whole(view: Path, tmp_path: Path) -> None:
    assert cache.is_whole(view)
    assert not cache.is_whole(tmp_path)


def test_a_cache_may_be_moved(view: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    os.symlink(view, elsewhere)
    assert np.array_equal(stored(elsewhere)(2), stored(view)(2))


def test_classes_may_have_any_name(tmp_path: Path, root: Path, wanted: list[Entry]) -> None:
    names = ('say "hi"', "B\u00e4r", "")
    cache.make(tmp_path, root, wanted[:1], 64, names)
    assert cache.classes(tmp_path) == names


def test_equal_contents_have_equal_names_at_one_size() -> None:
    assert cache.name_of("a" * 64, 64) == cache.name_of("a" * 64, 64)
    assert len({cache.name_of(sha, side) for sha in ("a", "b") for side in (64, 128)}) == 4
