"""Class folders: `root/<class>/...` or `root/{train,val,test}/<class>/...`, at any depth below.

A folder's name is the label. Hidden files and folders are passed over, and so is whatever does not
end like a video. A top folder is a split if it is named like one and holds folders, not videos.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from workloads.datasets import splits
from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

SUFFIXES = (
    *(".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"),
    *(".ts", ".webm", ".wmv"),
)
LAYOUT = "put each video into its class's folder: <class>/x.mp4, or train/<class>/x.mp4 (val, test)"


def rows(root: Path, field: str) -> list[Clip]:
    """Return a clip for every video below `root`, labelled by folder; `field` names it in errors."""
    videos = sorted(_videos(root))
    has_splits = any(len(video.parts) > 2 and _is_split(video) for video in videos)
    has_splits = has_splits and not any(
        len(video.parts) == 2 and not _is_split(video) for video in videos
    )
    return [_row(video, 1 if has_splits else 0, field) for video in videos]
