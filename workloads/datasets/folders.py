"""Class folders: `root/<class>/...` or `root/{train,val,test}/<class>/...`, at any depth below.

A folder's name is the label. Hidden files and folders are passed over, and so is whatever does not
end like a video; a folder that a link reaches a second time is not entered again. A class may be
called "train": the top folders are splits if all are named like splits, or if those named like
splits hold no video directly.
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
    found = walk(root)
    refused = dict(found.closed)
    for video in found.videos:
        if not (root / video).is_file():
            refused[str(video)] = "no file"
        elif str(video) != str(video).encode(errors="ignore").decode():
            refused[str(video)] = "its name is not UTF-8"
    if refused:  # what is found must not depend on a fault that may go away
        name, reason = min(refused.items())
        more = f" ({len(refused)} in all)" if len(refused) > 1 else ""
        what = f"{field}: {name!a}: {reason}{more}"
        raise Mistake(what, "put that right, or use `paretoken ingest`, which lists such files")
    return labelled(found.videos, field, needs_labels)


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
    twice: list[tuple[str, str]] = field(default_factory=list)
    """Further ways to folders that are known, with the reason not to take them."""


def walk(root: Path, shut: Path | None = None) -> Found:
    """List a folder, through links too, each folder once; what is hidden is passed over.

    Folders come before links to them, and links by their names, those in linked folders last: what
    is found under which name does not depend on the order in which the disk lists it.

    Args:
        root: where to begin.
        shut: a folder that is not entered.
    """
    walker = _Walker(root, os.path.realpath(shut) if shut else "")
    ways = [str(root)]
    while ways:
        ways = [link for way in sorted(ways) for link in walker.enter(way)]
    walker.found.videos.sort()
    return walker.found


class _Walker:
    def __init__(self, root: Path, shut: str) -> None:
        self.root, self.shut = root, shut
        self.found = Found()
        self.seen: dict[str, str] = {}  # real path -> as what it was entered

    def enter(self, way: str) -> list[str]:
        """List a folder and those that lie in it; return the links to folders in them."""
        links: list[str] = []
        if not self._is_new(way):
            return links
        for folder, subfolders, files in os.walk(way, onerror=self._refused):
            shown = [os.path.join(folder, name) for name in sorted(subfolders) if name[0] != "."]
            links += filter(os.path.islink, shown)
            plain = [path for path in shown if not os.path.islink(path)]
            subfolders[:] = [os.path.basename(path) for path in plain if self._is_new(path)]
            for name in files:
                self._list(PurePosixPath(_below(self.root, os.path.join(folder, name))))
        return links

    def _is_new(self, path: str) -> bool:
        """Say whether a folder is to be entered, or list it with the reason why not."""
        real, name = os.path.realpath(path), _below(self.root, path)
        if self.shut and (real == self.shut or real.startswith(self.shut + os.sep)):
            reason = "what is made here lies there"
        elif (before := self.seen.setdefault(real, name)) == name:
            return True
        else:
            is_above = before == "." or name.startswith(f"{before}/")
            reason = "a link to a folder above it" if is_above else f"reached already, as {before}"
        self.found.twice.append((name, reason))
        return False

    def _list(self, file: PurePosixPath) -> None:
        if file.name[0] != ".":
            is_video = file.suffix.lower() in SUFFIXES
            (self.found.videos if is_video else self.found.others).append(file)

    def _refused(self, error: OSError) -> None:
        path = _below(self.root, error.filename)
        self.found.closed.append((path, str(error.strerror).lower()))


def _below(root: Path, path: str) -> str:
    return Path(path).relative_to(root).as_posix()


def _has_splits(videos: Sequence[PurePosixPath]) -> bool:
    tops = {video.parts[0] for video in videos if len(video.parts) > 1}
    classes = {video.parts[0] for video in videos if len(video.parts) == 2}
    named = {top for top in tops if _is_split(top)}
    return bool(named) and (named == tops or named.isdisjoint(classes))


def _is_split(name: str) -> bool:
    return name.lower() in splits.NAMES
