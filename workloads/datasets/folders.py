"""Class folders: `root/<class>/...` or `root/{train,val,test}/<class>/...`, at any depth below.

A folder's name is the label. Hidden files and folders are passed over, and so is whatever does not
end like a video. A class may be called "train": the top folders are splits if all are named like
splits, or if those named like splits hold no video directly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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
    videos = sorted(_videos(root))
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


def _videos(root: Path) -> Iterator[PurePosixPath]:
    """Find the videos below `root`, through links too, relative to it."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and name[0] != "." and path.is_file():
                yield PurePosixPath(path.relative_to(root).as_posix())


def _has_splits(videos: Sequence[PurePosixPath]) -> bool:
    tops = {video.parts[0] for video in videos if len(video.parts) > 1}
    classes = {video.parts[0] for video in videos if len(video.parts) == 2}
    named = {top for top in tops if _is_split(top)}
    return bool(named) and (named == tops or named.isdisjoint(classes))


def _is_split(name: str) -> bool:
    return name.lower() in splits.NAMES
