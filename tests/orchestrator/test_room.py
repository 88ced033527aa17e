"""The bound on the frame cache: what goes, what stays, and what killed writers leave."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from orchestrator.lock import Lock
from orchestrator.room import Room, pin, room_of
from workloads import cache

CLIP = np.zeros((2, 8, 8, 3), np.uint8)
TAKES = CLIP.nbytes + cache.HEADER


def room_for(root: Path, num: int) -> Room:
    return Room(root / "cache", num * TAKES)


def put(room: Room, key: str, used: float = 0) -> bool:
    """Keep a clip as a task does; return whether there was room."""
    has_room = room.claim(CLIP.nbytes)
    if has_room:
        path = cache.place(room.frames, key)
        cache.put(path, CLIP)
        os.utime(path, (used, used))
    return has_room


def keys(room: Room) -> list[str]:
    return sorted(path.stem for path in room.frames.glob("*/*.npy"))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    room = room_for(tmp_path, 3)
    for key, used in (("aa", 30), ("bb", 10), ("cc", 20), ("dd", 40)):
        assert put(room, key, used)
    assert keys(room) == ["aa", "cc", "dd"]
    room.need(room.root / "views" / "one", ["cc", "zz"])  # is used now
    assert put(room, "ee", 50)
    assert keys(room) == ["cc", "dd", "ee"]


def test_what_a_running_study_needs_stays_and_new_frames_are_not_kept(tmp_path: Path) -> None:
    room, view = room_for(tmp_path, 2), tmp_path / "cache" / "views" / "one"
    put(room, "aa")
    put(room, "bb")
    room.need(view, ["aa", "bb", "cc"])
    pins = [pin(view), pin(view)]  # two studies on one manifest
    assert room.left() == 0
    assert not put(room, "cc")
    pins.pop().release()
    assert not put(room, "cc")
    assert keys(room) == ["aa", "bb"]
    pins.pop().release()
    assert room.left() == 2 * TAKES
    assert put(room, "cc")
    assert len(keys(room)) == 2


def test_a_smaller_limit_is_kept_from_the_next_study_on(tmp_path: Path) -> None:
    for key in ("aa", "bb", "cc"):
        put(room_for(tmp_path, 3), key)
    room_for(tmp_path, 1).tidy()
    assert len(keys(room_for(tmp_path, 1))) == 1


def test_a_clip_that_is_larger_than_the_limit_sends_nobody_away(tmp_path: Path) -> None:
    room = room_for(tmp_path, 2)
    put(room, "aa")
    assert not room.claim(3 * TAKES)
    assert keys(room) == ["aa"]


@pytest.mark.parametrize("torn", [None, "", "12x"])
def test_a_count_that_is_torn_is_made_again(torn: str | None, tmp_path: Path) -> None:
    room = room_for(tmp_path, 2)
    put(room, "aa")
    put(room, "bb", 1)
    (room.root / "used").unlink()
    if torn is not None:
        (room.root / "used").write_text(torn)
    assert put(room, "cc", 2)
    assert keys(room) == ["bb", "cc"]


def test_what_killed_writers_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    room = room_for(tmp_path, 5)
    put(room, "aa")
    dead, living = (room.frames / "aa" / f".{name}{cache.PART}" for name in ("dead", "living"))
    dead.write_bytes(b"half of it")
    with Lock(living) as writer:
        assert writer.take()
        room.tidy()
        assert (dead.exists(), living.exists()) == (False, True)
    room.tidy()
    assert not living.exists()
    assert keys(room) == ["aa"]


def test_frames_that_take_their_name_while_leftovers_are_swept_stay_whole(tmp_path: Path) -> None:
    room = room_for(tmp_path, 5)
    put(room, "aa")
    (whole,) = room.frames.glob("aa/*.npy")
    before = whole.read_bytes()
    os.link(whole, whole.with_name(f".aa.1{cache.PART}"))  # opened under that name, then renamed
    room.tidy()
    assert whole.read_bytes() == before
    assert keys(room) == ["aa"]


def fill(root: Path, number: int) -> None:
    for clip in range(20):
        put(room_for(root, 10), f"{number}{clip:02d}", clip)


def test_writers_in_several_processes_keep_the_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill, args=(tmp_path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    room = room_for(tmp_path, 10)
    room.tidy()
    assert 1 <= len(keys(room)) <= 10
    assert all(cache.get(path) is not None for path in room.frames.glob("*/*.npy"))


def test_the_usual_limit_leaves_half_of_what_is_free(tmp_path: Path) -> None:
    assert room_of(tmp_path, 1.5).limit == 3 * 2**29
    assert room_of(tmp_path, 0).limit == 0
    free = os.statvfs(tmp_path)
    assert room_of(tmp_path / "store").limit == pytest.approx(
        free.f_bavail * free.f_frsize / 2, rel=0.05
    )
