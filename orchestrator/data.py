"""Clips for the stages: Ray Data decodes every video of a manifest once, into the frame cache.

Tasks write frames and hand back only what the videos hold, so no pixel goes through the object
store. Where there is no room, or no cache is wanted, they only count: which videos can be read and
how many frames they have decides what a stage sees, so it must be known before. What cannot be read
is listed; beyond a limit the study does not start.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.data

from orchestrator.cluster import DATA_CPUS
from orchestrator.environment import hush
from orchestrator.files import write_bytes
from orchestrator.lock import Lock
from orchestrator.room import Room, pin, room_of
from search_spaces.fit import cases_of
from search_spaces.study import Study
from workloads import cache
from workloads.cache import HEADER, Entry
from workloads.datasets import Manifest
from workloads.knobs import key_of

MOST_BAD = 0.02  # share of unreadable videos that a study tolerates
BAD_LIST = "quarantine.csv"
BLOCKS = 16  # tasks of a pass, at most; few large ones beat many small ones
LEAST_BATCH, MOST_BATCH = 8, 64  # videos of a task; a killed one is begun again
LEAST_SIDE = 64

COLUMNS = tuple(field.name for field in fields(Entry))

Progress = Callable[[int, int], None]


class TooManyBad(RuntimeError):  # noqa: N818 - a limit that was passed, not an error of ours
    """More videos cannot be read than a study tolerates."""

    is_expected = True


def short_side(study: Study) -> int:
    """Return how large the frames of a study's clips are kept: their short side, in pixels.

    Enough for whatever may be searched; a power of two, so that studies of about the same size
    share frames and stages.
    """
    plans = [study.plan(chosen) for chosen in ({}, *study.space.examples())]
    stages = {stage for plan in plans for stage in plan.chain()}
    largest = max(clip.size for stage in stages for clip, _ in cases_of(stage.config))
    return max(LEAST_SIDE, 1 << (largest - 1).bit_length())


def digest_of(manifest: Manifest, side: int) -> str:
    """Return what stands for the clips in the keys of stages: which they are and how kept.

    Where frames are kept smaller than they were, a stage sees other pixels.
    """
    return key_of([manifest.digest, side, cache.DECODER])


def folder_for(store: Path, manifest: Manifest, short_side: int) -> Path:
    """Return the view of a manifest at a cap on the short side of its frames."""
    facts = [manifest.digest, cache.name_of("", short_side)]
    return store / "cache" / "views" / key_of(facts)[:24]


class NotNow(RuntimeError):  # noqa: N818 - nothing is lost
    """Videos cannot be read for a reason that may go away; results must not depend on that."""

    is_expected = True
    goes_on = True  # with the same command


class Filled(NamedTuple):
    """What filling a cache came to."""

    bad: list[Entry]
    """Clips that cannot be read."""
    decoded: int
    """Videos that were decoded for it, or tried."""
    stored: int
    """Clips whose frames are there now."""
    long: int = 0
    """Clips of videos that are too long to be kept."""


def fill(
    folder: Path,
    manifest: Manifest,
    short_side: int,
    progress: Progress,
    room: Room | None = None,
) -> Filled:
    """Decode what is not known of a manifest, or not stored and has room; make its view.

    Two drivers may come at once: one decodes, the other waits. What a killed one has decoded stays.

    Args:
        folder: of the view.
        room: for frames; by default that of the folder's cache, with its usual limit.

    Raises:
        NotNow: some cannot be read for a reason that may go away.
        TooManyBad: more than `MOST_BAD` of the videos cannot be read.
    """
    room = room or room_of(folder.parents[2])
    entries = _wanted(manifest, short_side)
    room.need(folder, [entry.key for entry in entries])
    with Lock(folder / "lock") as lock, pin(folder):
        while not lock.take():
            time.sleep(0.5)
        if room.limit:
            room.tidy()
        entries, decoded = _completed(folder, manifest, entries, short_side, progress, room)
    bad = [entry for entry in entries if entry.reason]
    _check_bad(folder, bad, manifest)
    is_there = [room.limit > 0 and cache.is_there(room.frames, entry) for entry in entries]
    return Filled(bad, decoded, sum(is_there), sum(entry.is_long for entry in entries))


def _check_bad(folder: Path, bad: list[Entry], manifest: Manifest) -> None:
    """List the clips that cannot be read; stop where that may change, or they are too many."""
    if bad:
        _list_bad(folder, bad)
    if passing := [entry for entry in bad if entry.passing]:
        raise NotNow(
            f"{len(passing)} videos cannot be read now ({passing[0].name}: {passing[0].reason}): "
            f"{folder / BAD_LIST}; put that right, or take them out"
        )
    if len(bad) > MOST_BAD * len(manifest.clips):
        remedy = "repair or remove what is listed there, then run the same again"
        raise TooManyBad(f"{complaint(folder, bad, manifest)}\n  {remedy}")


def _wanted(manifest: Manifest, short_side: int) -> list[Entry]:
    """Return the clips of a manifest, of whose videos nothing is known yet."""
    rows = zip(manifest.clips, manifest.labels, manifest.contents, strict=True)
    return [
        Entry(
            clip=number,
            name=clip.path,
            label=label,
            split=clip.split,
            key=cache.name_of(content.sha256, short_side),
            size=content.size,
            mtime_ns=content.mtime_ns,
            seeks=clip.proved == content.sha256,
        )
        for number, (clip, label, content) in enumerate(rows)
    ]


def _completed(
    folder: Path,
    manifest: Manifest,
    wanted: list[Entry],
    short_side: int,
    progress: Progress,
    room: Room,
) -> tuple[list[Entry], int]:
    """Return all entries with what their videos hold, and how many were decoded for it."""
    before = cache.index(folder) if cache.is_whole(folder) else []
    known = {one.key: one for one in before if one.is_known}
    entries = [_as_known(one, known.get(one.key)) for one in wanted]
    todo = _todo(entries, room)
    done, decoded = _decode(todo, manifest.root, short_side, progress, room) if todo else ({}, 0)
    found = [done.get(one.clip, one) for one in entries]
    # Another run may open the view: what was known before a passing fault stays known there.
    pairs = zip(entries, found, strict=True)
    kept = [old if new.passing and old.is_known else new for old, new in pairs]
    if kept != before or cache.videos(folder) != manifest.root:
        classes = manifest.classes
        cache.publish(folder, kept, classes, manifest.root, short_side, room.frames)
    return found, decoded


def _as_known(entry: Entry, known: Entry | None) -> Entry:
    """Return an entry with what is known of a video of the same content."""
    if known is None:
        return entry
    names = ("frames", "height", "width", "reason")
    return replace(entry, **{name: getattr(known, name) for name in names})


def _todo(entries: Sequence[Entry], room: Room) -> list[Entry]:
    """Return the clips to decode: those never read, and those that are gone and have room."""
    todo = [one for one in entries if not one.is_known]
    readable = [one for one in entries if one.frames] if room.limit else []
    short = [one for one in readable if not one.is_long]
    gone = [one for one in short if not cache.is_there(room.frames, one)]
    left = room.left() if gone else 0
    for one in gone:
        left -= one.num_bytes + HEADER
        todo += [one] if left >= 0 else []
    return sorted(todo, key=lambda entry: entry.clip)


def complaint(folder: Path, bad: list[Entry], manifest: Manifest) -> str:
    """Say how many videos could not be read and where they are listed."""
    share = len(bad) / len(manifest.clips)
    return (
        f"{len(bad)} of {len(manifest.clips)} videos could not be read "
        f"({share:.1%}, limit {MOST_BAD:.0%}): {folder / BAD_LIST}"
    )


def told_full(filled: Filled, manifest: Manifest, room: Room) -> str:
    """Say how many clips have no place in the cache; nothing if all have."""
    num = len(manifest.clips) - len(filled.bad) - filled.long
    if filled.stored == num:
        return ""
    limit = f"{room.limit / 2**30:.3g} GiB"
    return f"cache  {filled.stored} of {num} clips fit into {limit}; the others are decoded again"


def told_long(folder: Path) -> str:
    """Say how many videos have too many frames for the cache; nothing if none has."""
    entries = [entry for entry in cache.index(folder) if not entry.reason]
    long = [entry for entry in entries if entry.is_long]
    if not long:
        return ""
    faster = "" if all(entry.seeks for entry in long) else "; faster after `paretoken ingest`"
    return (
        f"{len(long)} of {len(entries)} videos have more than {cache.MOST_FRAMES} frames: they are "
        f"decoded for each clip{faster}"
    )


def told_short(folder: Path, span: int) -> str:
    """Say how many videos are shorter than a clip; nothing if none is."""
    lengths = [entry.frames for entry in cache.index(folder) if not entry.reason]
    num = sum(length < span for length in lengths)
    if not num:
        return ""
    return (
        f"{num} of {len(lengths)} videos have fewer than the {span} frames that a clip spans: "
        "their last frame repeats"
    )


def _decode(
    entries: Sequence[Entry], root: Path, short_side: int, progress: Progress, room: Room
) -> tuple[dict[int, Entry], int]:
    """Decode clips in tasks; return their entries by clip id, and how many were decoded."""
    hush()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    batch = min(max(LEAST_BATCH, math.ceil(len(entries) / BLOCKS)), MOST_BATCH)

    def write(columns: dict[str, Any]) -> dict[str, Any]:  # Any: a column of any type
        written = [*_written(_entries(columns), root, short_side, room)]
        done = {name: [getattr(entry, name) for entry, _ in written] for name in COLUMNS}
        return {**done, "decoded": [was_decoded for _, was_decoded in written]}

    rows = [asdict(entry) for entry in entries]
    dataset = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / batch))
    tasks = dataset.map_batches(write, batch_size=batch, num_cpus=DATA_CPUS)
    found: dict[int, Entry] = {}
    decoded = 0
    for columns in tasks.iter_batches(batch_size=None, prefetch_batches=0):
        decoded += int(columns["decoded"].sum())
        found |= {entry.clip: entry for entry in _entries(columns)}
        progress(len(found), len(rows))
    return found, decoded


def _written(
    entries: Sequence[Entry], root: Path, short_side: int, room: Room
) -> Iterator[tuple[Entry, bool]]:
    """Yield clips with what their videos hold, and whether they had to be decoded for it."""
    is_full = False

    def claim(num_bytes: int) -> bool:
        nonlocal is_full  # where there was no room, there will not be some soon
        is_full = is_full or not room.claim(num_bytes)
        return not is_full

    for entry in entries:
        if room.limit:
            yield cache.keep(entry, root, short_side, room.frames, claim)
        else:
            yield cache.decode(entry, root, short_side)[0], True


def _entries(columns: dict[str, Any]) -> list[Entry]:  # Any: numpy arrays of any type
    values = zip(*(columns[name].tolist() for name in COLUMNS), strict=True)
    return [Entry(*row) for row in values]


def _list_bad(folder: Path, bad: list[Entry]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "split", "reason"])
    writer.writerows((entry.name, entry.split, entry.reason) for entry in bad)
    write_bytes(folder / BAD_LIST, text.getvalue().encode())
