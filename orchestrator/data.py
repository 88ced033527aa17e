"""Clips for the stages: Ray Data decodes every video of a manifest once, into the frame cache.

Each task writes a shard and hands back only where its clips lie, so no pixel goes through the
object store. What cannot be read is counted and listed; beyond a limit the study does not start.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.data

from orchestrator.cluster import DATA_CPUS
from orchestrator.environment import hush
from orchestrator.files import write_bytes
from orchestrator.lock import Lock
from search_spaces.fit import cases_of
from search_spaces.study import Study
from workloads import cache, readers
from workloads.cache import Entry
from workloads.datasets import Manifest
from workloads.knobs import key_of

MOST_BAD = 0.02  # share of unreadable videos that a study tolerates
BAD_LIST = "quarantine.csv"
BLOCKS = 16  # tasks of a pass, at most; few large ones beat many small ones
LEAST_BATCH = 8
LEAST_SIDE = 64

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
    return key_of([manifest.digest, side, cache.MOST_FRAMES])


def folder_for(store: Path, manifest: Manifest, short_side: int) -> Path:
    """Return where the frames of a manifest at a cap on their short side lie."""
    facts = [manifest.digest, short_side, cache.MOST_FRAMES, readers.versions()]
    return store / "cache" / key_of(facts)[:24]


def fill(folder: Path, manifest: Manifest, short_side: int, progress: Progress) -> list[Entry]:
    """Decode a manifest into its cache, unless that was done before; return the unreadable clips.

    Two drivers may come at once: one decodes, the other waits. A cache that was killed half-way is
    begun again.

    Raises:
        TooManyBad: more than `MOST_BAD` of the videos cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / "lock") as lock:
        while not lock.take() and not cache.is_whole(folder):
            time.sleep(0.5)
        if not cache.is_whole(folder):
            cache.publish(folder, _decode(folder, manifest, short_side, progress), manifest.classes)
    bad = [entry for entry in cache.index(folder) if entry.reason]
    if bad:
        _list_bad(folder, bad)
    if len(bad) > MOST_BAD * len(manifest.clips):
        remedy = "repair or remove what is listed there, then run the same again"
        raise TooManyBad(f"{complaint(folder, bad, manifest)}\n  {remedy}")
    return bad


def complaint(folder: Path, bad: list[Entry], manifest: Manifest) -> str:
    """Say how many videos could not be read and where they are listed."""
    share = len(bad) / len(manifest.clips)
    return (
        f"{len(bad)} of {len(manifest.clips)} videos could not be read "
        f"({share:.1%}, limit {MOST_BAD:.0%}): {folder / BAD_LIST}"
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
    folder: Path, manifest: Manifest, short_side: int, progress: Progress
) -> Iterable[Entry]:
    labels = manifest.labels
    rows = [
        asdict(
            Entry(clip=i, name=clip.path, label=labels[i], split=clip.split, decoder=clip.decoder)
        )
        for i, clip in enumerate(manifest.clips)
    ]
    hush()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    batch = max(LEAST_BATCH, math.ceil(len(rows) / BLOCKS))

    def write(columns: dict[str, Any]) -> dict[str, Any]:  # Any: a column of any type
        written = cache.write_shard(folder, manifest.root, _entries(columns), short_side)
        return {name: [getattr(entry, name) for entry in written] for name in columns}

    dataset = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / batch))
    decoded = dataset.map_batches(write, batch_size=batch, num_cpus=DATA_CPUS)
    entries: list[Entry] = []
    for columns in decoded.iter_batches(batch_size=None, prefetch_batches=0):
        entries += _entries(columns)
        progress(len(entries), len(rows))
    return entries


def _entries(columns: dict[str, Any]) -> list[Entry]:  # Any: numpy arrays of any type
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [Entry(**dict(zip(columns, row, strict=True))) for row in values]


def _list_bad(folder: Path, bad: list[Entry]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "split", "reason"])
    writer.writerows((entry.name, entry.split, entry.reason) for entry in bad)
    write_bytes(folder / BAD_LIST, text.getvalue().encode())
