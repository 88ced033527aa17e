"""What there is to ingest: the videos below a folder or in a CSV, each with a name of its own.

The names are those of the data set that is made: relative, UTF-8, without what a table or a shell
trips over, no two the same. A video that is rewritten becomes an .mp4, under its whole old name.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from workloads.datasets import Clip, csv, folders, published, splits
from workloads.mistakes import Mistake

LONGEST_NAME = 200  # bytes, of the 255 that file systems take


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video that somebody has."""

    file: str
    """Absolute path; bytes that are no UTF-8 as Python escapes them."""
    clip: Clip
    """Its label, split and group as given; its path relative to where they were given."""
    link: str
    """Its name in the data set as it is."""
    copy: str
    """Its name there once rewritten."""
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """All that was found."""

    sources: tuple[Source, ...]
    closed: tuple[tuple[str, str], ...] = ()
    """Folders that were not entered and videos that cannot be placed, with the reason."""
    twice: tuple[tuple[str, str], ...] = ()
    """Ways to what is known by another one, with the reason."""
    others: Counter[str] | None = None
    """How many files do not end like a video, by ending."""
    doubt: str = ""
    """What a study will not take about the splits and groups as given."""
    missing: int = 0
    """Videos of the lists of a published data set that are not there."""
    unlisted: tuple[str, ...] = ()
    """Videos that are there and that those lists do not name."""


@dataclass(frozen=True)
class Lists:
    """The lists of a published data set."""

    kind: str
    path: Path
    fold: int = 1


def listing(src: Path, lists: Lists | None = None, shut: Path | None = None) -> Listing:
    """List the videos of a folder or a CSV.

    Args:
        src: class folders, a folder of videos, or a CSV.
        lists: where labels and splits are from instead of folders.
        shut: a folder that is not entered.

    Raises:
        Mistake: it is neither, or does not say what is in it.
    """
    field = f"SRC {src}"
    if src.is_dir():
        return _below(src, lists, shut, field)
    if lists is None and src.is_file() and src.suffix.lower() == ".csv":
        clips = csv.listed(src, field)
        return Listing(_named(src.parent, clips), doubt=_doubt(clips, field))
    if lists is not None and src.exists():
        raise Mistake(f"{field}: is no folder", "with --annotations, name the folder of the videos")
    problem = "is neither a folder nor a .csv file" if src.exists() else "does not exist"
    raise Mistake(f"{field}: {problem}", "give a folder of videos, or a CSV path[,label[,split]]")


def _below(src: Path, lists: Lists | None, shut: Path | None, field: str) -> Listing:
    """List a folder."""
    found = folders.walk(src, shut)
    closed, twice = dict(found.closed), dict(found.twice)
    missing, unlisted = 0, []
    if lists is None:
        clips = _of_folder(found.videos, field)
    else:
        place = f"--annotations {lists.kind}:{lists.path}"
        known = published.load(lists.kind, lists.path, lists.fold, found.videos, place)
        clips, missing, unlisted = known.clips, known.missing, known.unlisted
        closed |= known.refused
        twice |= known.twice
    return Listing(
        _named(src, clips),
        closed=_rows(closed),
        twice=_rows(twice),
        others=Counter(safe(other.suffix.lower() or other.name) for other in found.others),
        doubt=_doubt(clips, field),
        missing=missing,
        unlisted=tuple(map(safe, unlisted)),
    )


def _rows(reasons: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((safe(path), safe(reason)) for path, reason in sorted(reasons.items()))


def safe(name: str) -> str:
    """Return a name, such as of a file or a class, in which nothing is invisible or no UTF-8."""
    kept = "".join(_safe(letter) for letter in name)
    behind = len(kept) - len(kept.rstrip())
    before = len(kept.rstrip()) - len(kept.strip())
    return "%20" * before + kept.strip() + "%20" * behind  # a table would drop them


def _safe(letter: str) -> str:
    if letter == " " or letter.isprintable():
        return letter
    return "".join(f"%{byte:02X}" for byte in os.fsencode(letter))


def _of_folder(videos: Iterable[PurePosixPath], field: str) -> list[Clip]:
    """Return the clips of class folders, or of one folder without classes."""
    clips = folders.labelled(list(videos), field, needs_labels=False)
    return [replace(clip, label=safe(clip.label)) for clip in clips]


def _doubt(clips: list[Clip], field: str) -> str:
    """Say what a study will refuse, before hours are spent; nothing here depends on it."""
    try:
        splits.assign(clips, trains=True, seed=0, field=field)
    except Mistake as mistake:
        return safe(f"{mistake.what}: a study will refuse that")
    return ""


def _named(root: Path, clips: list[Clip]) -> tuple[Source, ...]:
    """Give every video its names; a name that is taken gets a hash of the path."""
    links: dict[str, str] = {}
    for clip in clips:
        name = _name(clip.path)
        links[_hashed(name, clip.path) if name in links else name] = clip.path
    sources = []
    for link, clip in zip(links, clips, strict=True):
        copy = link if link.endswith(".mp4") else f"{link}.mp4"
        if copy != link and copy in links:
            copy = _hashed(copy, clip.path)
        file = os.path.abspath(root / clip.path)
        try:
            stat = os.stat(file)
            size, mtime_ns = stat.st_size, stat.st_mtime_ns
        except (OSError, ValueError):  # gone or hidden: its examination will say so
            size, mtime_ns = -1, 0
        clip = replace(clip, split=splits.NAMES.get(clip.split.lower(), clip.split))
        sources.append(
            Source(file=file, clip=clip, link=link, copy=copy, size=size, mtime_ns=mtime_ns)
        )
    return tuple(sources)


def _name(path: str) -> str:
    parts = [safe(part) for part in PurePosixPath(path).parts if part not in ("..", "/")]
    return "/".join(_shortened(part) for part in parts)


def _shortened(part: str) -> str:
    if len(part.encode()) <= LONGEST_NAME:
        return part
    stem, suffix = os.path.splitext(part)
    head = stem.encode()[: LONGEST_NAME // 2].decode(errors="ignore")
    return _hashed(head + suffix[: LONGEST_NAME // 8], part)


def _hashed(name: str, path: str) -> str:
    """Tell a name from equal ones by what it stands for."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}{suffix}"
