"""Published data sets as they come: their own lists beside a folder of their videos.

    clips, missing = load("ucf101", Path("ucfTrainTestlist"), 1, videos, "--annotations ...")

A video is found by its name, in whatever folder below. Official splits are kept; where the list has
a source of several clips on two sides, as some have, that source is no group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from workloads.datasets import hmdb51, kinetics, ssv2, ucf101
from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

KINDS = {"ucf101": ucf101, "hmdb51": hmdb51, "ssv2": ssv2, "kinetics": kinetics}


def load(
    kind: str, annotations: Path, fold: int, videos: Iterable[PurePosixPath], field: str
) -> tuple[list[Clip], int]:
    """Return the clips that are there, and how many of the lists are not.

    Args:
        kind: one of `KINDS`.
        annotations: folder (or file) of the lists.
        fold: which of several official divisions, from 1.
        videos: what there is, relative to its folder.
        field: names the lists in a Mistake.
    """
    if kind not in KINDS:
        raise Mistake(f"{field}: {kind!r} is unknown", f"known are {', '.join(KINDS)}")
    module = KINDS[kind]
    if not 1 <= fold <= module.FOLDS:
        raise Mistake(f"--fold {fold}: {kind} has {module.FOLDS}", "they are counted from 1")
    if not annotations.exists():
        raise Mistake(f"{field}: {annotations} does not exist", "give the folder of the lists")
    entries = module.entries(annotations, fold, field)
    named = {video.stem: str(video) for video in videos}
    found = []
    for entry in entries:
        name = entry.path if entry.path in named or kind != "kinetics" else entry.group
        if name in named:
            found.append(replace(entry, path=named[name]))
    if not found:
        what = f"{field}: none of {len(entries)} listed videos is in SRC, such as {entries[0].path}"
        raise Mistake(what, "give the folder that the videos are in")
    return _grouped(found), len(entries) - len(found)


def _grouped(clips: Sequence[Clip]) -> list[Clip]:
    """Take the group from clips whose group the official lists put on two sides."""
    sides = defaultdict(set)
    for clip in clips:
        sides[clip.group].add(clip.split)
    return [clip if len(sides[clip.group]) == 1 else replace(clip, group="") for clip in clips]
