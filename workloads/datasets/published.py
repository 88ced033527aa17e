"""Published data sets as they come: their own lists beside a folder of their videos.

    found = load("ucf101", Path("ucfTrainTestlist"), 1, videos, "--annotations ...")

A video is found by its name, in whatever folder below; of several so named, it is the one in the
folder of its class. Official splits are kept; where the list has a source of several clips on two
sides, as some have, that source is no group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from workloads.datasets import hmdb51, kinetics, ssv2, ucf101
from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

KINDS = {"ucf101": ucf101, "hmdb51": hmdb51, "ssv2": ssv2, "kinetics": kinetics}


@dataclass(frozen=True)
class Found:
    """What the lists and a folder have in common, and what they have not."""

    clips: list[Clip]
    """Of a file each."""
    missing: int
    """How many rows of the lists have no file."""
    refused: dict[str, str]
    """Path of a file that rows name but that cannot be used -> why."""
    twice: dict[str, str]
    """Path of a file beside one of the same name that is used -> why."""
    unlisted: list[str]
    """Paths of files that no row names, sorted."""


def load(
    kind: str, annotations: Path, fold: int, videos: Iterable[PurePosixPath], field: str
) -> Found:
    """Return the clips that are there, and what else there is.

    Args:
        kind: one of `KINDS`.
        annotations: folder (or file) of the lists.
        fold: which of several official divisions, from 1.
        videos: what there is, relative to its folder.
        field: names the lists in a Mistake.

    Raises:
        Mistake: the lists are not as published, or none of their videos is there.
    """
    if kind not in KINDS:
        raise Mistake(f"{field}: {kind!r} is unknown", f"known are {', '.join(KINDS)}")
    module = KINDS[kind]
    if not 1 <= fold <= module.FOLDS:
        raise Mistake(f"--fold {fold}: {kind} has {module.FOLDS}", "they are counted from 1")
    if not annotations.exists():
        raise Mistake(f"{field}: {annotations} does not exist", "give the folder of the lists")
    rows = module.entries(annotations, fold, field)
    if not rows:
        raise Mistake(f"{field}: no video in any of the lists there", "are they whole?")
    named = defaultdict(list)
    for video in sorted(videos):
        named[video.stem].append(video)
    claims: dict[str, list[Clip]] = defaultdict(list)  # path -> rows that name it
    for row in rows:
        name = row.path if row.path in named or kind != "kinetics" else row.group
        if name in named:
            claims[_nearest(named[name], row)].append(row)
    if not claims:
        what = f"{field}: none of {len(rows)} listed videos is in SRC, such as {rows[0].path}"
        raise Mistake(what, "give the folder that the videos are in")
    return _settled(claims, named.values(), len(rows))


def _nearest(videos: Sequence[PurePosixPath], row: Clip) -> str:
    """Return the one in the folder of its class, or the first."""
    return str(min(videos, key=lambda video: row.label not in video.parts[:-1]))


def _settled(
    claims: Mapping[str, Sequence[Clip]], named: Iterable[Sequence[PurePosixPath]], total: int
) -> Found:
    """Give each file to one row at most; rows that say the same of it are one."""
    clips, unlisted = [], []
    refused: dict[str, str] = {}
    twice: dict[str, str] = {}
    for path, rows in claims.items():
        said = sorted({f"{row.label} in {row.split}" for row in rows})
        if len(said) == 1:
            clips.append(replace(rows[0], path=path))
        else:
            refused[path] = f"named by rows that disagree: {', '.join(said[:4])}"
    for same in named:
        used = next((video for video in same if str(video) in claims), None)
        spare = [str(video) for video in same if str(video) not in claims]
        if used is None:
            unlisted += spare
        else:
            twice |= dict.fromkeys(spare, f"named like another video: {used}")
    missing = total - sum(map(len, claims.values()))
    return Found(_grouped(clips), missing, refused, twice, sorted(unlisted))


def _grouped(clips: Sequence[Clip]) -> list[Clip]:
    """Take the group from clips whose group the official lists put on two sides."""
    sides = defaultdict(set)
    for clip in clips:
        sides[clip.group].add(clip.split)
    return [clip if len(sides[clip.group]) == 1 else replace(clip, group="") for clip in clips]
