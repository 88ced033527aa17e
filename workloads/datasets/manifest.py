"""The manifest: the clips of a data set in a fixed order, and one digest of all that is in them.

The digest covers paths, labels, splits, groups and the videos' contents, but not where the data set
lies or when it was written: equal data has equal digests on every machine. A file is read once to
hash it; the JSON file `hashes` remembers the result for as long as size and mtime stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

HASHING_THREADS = 4  # hashing releases the GIL; more than a few only wait for the disk


@dataclass(frozen=True, slots=True)
class Clip:
    """A labelled video of a data set."""

    path: str
    """Relative to the manifest's root, with forward slashes."""
    label: str
    """Empty is not given."""
    split: str = ""
    """`train`, `val` or `test`; empty is not given."""
    group: str = ""
    """What must stay on one side of a split: a scene, a person; empty is not given."""
    proved: str = ""
    """sha256 of the content in which decord is proved to find every frame, in any order; empty is
    none. Nothing that is computed depends on it."""

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What of it goes into the digest."""
        return self.path, self.label, self.split, self.group


@dataclass(frozen=True)
class Manifest:
    """A data set as every stage sees it."""

    root: Path
    clips: tuple[Clip, ...]
    """Sorted by path: a clip's id is its position."""
    digest: str
    contents: tuple[Content, ...] = ()
    """Of the clips' files, by clip id."""
    notes: tuple[str, ...] = ()
    """What a person should hear, such as that no groups were given."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, sorted: a label's number is its position."""
        return tuple(sorted({clip.label for clip in self.clips}))

    @property
    def is_labelled(self) -> bool:
        """Whether clips have labels; all of them have, or none."""
        return self.classes != ("",)

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """The label's number of each clip, by clip id."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return tuple(numbers[clip.label] for clip in self.clips)

    def ids(self, split: str) -> tuple[int, ...]:
        """Return the ids of a split's clips, ascending."""
        return tuple(number for number, clip in enumerate(self.clips) if clip.split == split)


class Content(NamedTuple):
    """What is known of a file that was hashed."""

    size: int
    mtime_ns: int
    sha256: str


def digest_of(clips: Sequence[Clip], contents: Sequence[Content]) -> str:
    """Return the sha256 of all clips with their files' contents, in any order."""
    rows = [
        json.dumps([*clip.identity, content.size, content.sha256])
        for clip, content in zip(clips, contents, strict=True)
    ]
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def contents_of(paths: Sequence[Path], hashes: Path | None = None) -> tuple[Content, ...]:
    """Return what is known of files after they were hashed, in their order."""
    known = _recall(hashes)
    names = [os.path.abspath(path) for path in paths]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        contents = list(pool.map(partial(_content, known), names))
    found = dict(zip(names, contents, strict=True))
    if hashes is not None and any(known.get(name) != content for name, content in found.items()):
        _remember(hashes, known | found)
    return tuple(contents)


def _content(known: dict[str, Content], name: str) -> Content:
    """Describe one file, and read it only if it changed since it was last hashed."""
    stat = os.stat(name)
    before = known.get(name)
    if before is not None and before[:2] == (stat.st_size, stat.st_mtime_ns):
        return before
    with open(name, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Content(stat.st_size, stat.st_mtime_ns, sha256)


def _recall(hashes: Path | None) -> dict[str, Content]:
    """Read the remembered hashes; none if the file is missing or torn, for they can be rebuilt."""
    if hashes is not None:
        with suppress(OSError, ValueError, TypeError, AttributeError):
            return {name: Content(*entry) for name, entry in json.loads(hashes.read_text()).items()}
    return {}


def _remember(hashes: Path, known: dict[str, Content]) -> None:
    hashes.parent.mkdir(parents=True, exist_ok=True)
    draft = hashes.with_name(f".{hashes.name}.{os.getpid()}")
    draft.write_text(json.dumps(known))
    draft.replace(hashes)  # whole or not at all
