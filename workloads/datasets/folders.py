"""Class folders: `root/<class>/...` or `root/{train,val,test}/<class>/...`, at any depth below.

A folder's name is the label. Hidden files and folders are passed over, and so is whatever does not
end like a video; a link to a folder above it is not followed. A class may be called "train": the
top folders are splits if all are named like splits, or if those named like splits hold no video
directly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from workloads.datasets import splits
from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".ts", ".mts", ".m2ts", ".ogv", ".wmv", ".flv"),
)
LAYOUT = (
    "arrange them as <class>/x.mp4, or as train/<class>/x.mp4, val/<class>/..., test/<class>/..."
)


def rows(root: Path, field: str, needs_labels: bool = True) -> list[Clip]:
    """Return a clip for every video below `root`; `field` names the folder in a Mistake.

    Where no labels are needed, videos that all lie in `root` itself have none.
    """
    found = [video for video in walk(root).videos if (root / video).is_file()]
    return labelled(found, field, needs_labels)


def labelled(videos: Sequence[PurePosixPath], field: str, needs_labels: bool = True) -> list[Clip]:
    """Return a clip for each of some paths, sorted; they are relative to the root."""
    videos = sorted(videos)
    if not needs_labels and all(len(video.parts) == 1 for video in videos):
        return [Clip(str(video), "") for video in videos]
    depth = 1 if _has_splits(videos) else 0
    for video in videos:
        if len(video.parts) < depth + 2:
            raise Mistake(f"{field}: {video} lies in no class folder", LAYOUT)
        if depth == 1 and not _is_split(video.parts[0]):
            raise Mistake(f'{field}: folder "{video.parts[0]}" stands beside the splits', LAYOUT)
    return [
        Clip(str(video), video.parts[depth], video.parts[0] if depth else "") for video in videos
    ]


@dataclass
class Found:
    """What lies below a folder, relative to it."""

    videos: list[PurePosixPath] = field(default_factory=list)
    """Whatever ends like a video, be it one or not."""
    others: list[PurePosixPath] = field(default_factory=list)
    """Files that do not end like a video."""
    closed: list[tuple[str, str]] = field(default_factory=list)
    """Folders that were not entered, with the reason."""


def walk(root: Path) -> Found:
    """List a folder, through links too; what is hidden is passed over."""
    found = Found()

    def refused(error: OSError) -> None:
        found.closed.append((_below(root, error.filename), str(error.strerror).lower()))

    above = {str(root): {os.path.realpath(root)}}
    for folder, subfolders, files in os.walk(root, onerror=refused, followlinks=True):
        parents, entered = above.pop(folder), []
        for name in subfolders:
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real in parents:
                found.closed.append((_below(root, path), "a link to a folder above it"))
            elif not name.startswith("."):
                above[path] = parents | {real}
                entered.append(name)
        subfolders[:] = entered
        for name in files:
            video = PurePosixPath(_below(root, os.path.join(folder, name)))
            if name[0] != ".":
                (found.videos if video.suffix.lower() in SUFFIXES else found.others).append(video)
    return found


def _below(root: Path, path: str) -> str:
    return Path(path).relative_to(root).as_posix()


def _has_splits(videos: Sequence[PurePosixPath]) -> bool:
    tops = {video.parts[0] for video in videos if len(video.parts) > 1}
    classes = {video.parts[0] for video in videos if len(video.parts) == 2}
    named = {top for top in tops if _is_split(top)}
    return bool(named) and (named == tops or named.isdisjoint(classes))


def _is_split(name: str) -> bool:
    return name.lower() in splits.NAMES
