"""Data sets: class folders or a CSV of the user's, or moving shapes of our own, to one manifest.

    manifest = load(Path("videos"), trains=True)
    manifest.clips[0].path, manifest.classes[manifest.labels[0]], manifest.ids("val")

`folders` and `csv` read the rows, `splits` decides on train, val and test, `manifest` keeps the
result with its digest. All that is wrong with the data is said here, before anything runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from workloads.datasets import csv, folders, splits
from workloads.datasets.manifest import Clip, Manifest, digest_of
from workloads.mistakes import Mistake

__all__ = ["Clip", "Manifest", "load"]


def load(data: Path, *, trains: bool, seed: int = 0, hashes: Path | None = None) -> Manifest:
    """Read the manifest of a data set.

    Args:
        data: class folders, or a CSV `path,label[,split[,group]]`.
        trains: whether clips to train on, and labels, are needed; if not, an unsplit data set is
            val and test, and clips that are there to train on are left out.
        seed: decides which clips go where as far as splits are not given.
        hashes: JSON file that remembers contents, so that no file is read a second time.

    Raises:
        Mistake: something about the data that a person can put right.
    """
    field = f"--data {data}"
    rows = _rows(data, field, trains)
    _check_classes(rows, field, trains)
    clips, notes = splits.assign(rows, trains=trains, seed=seed, field=field)
    if trains:
        _check_splits(clips, ("train", "val"), field)
    else:
        clips = _to_judge(clips, field)
    clips = sorted(clips, key=lambda clip: clip.path)
    root = (data if data.is_dir() else data.parent).absolute()
    return Manifest(root, tuple(clips), digest_of(root, clips, hashes), notes)


def _rows(data: Path, field: str, needs_labels: bool) -> list[Clip]:
    if data.is_dir():
        return folders.rows(data, field, needs_labels)
    if data.is_file() and data.suffix.lower() == ".csv":
        return csv.rows(data, field, needs_labels)
    problem = "is neither a folder nor a .csv file" if data.exists() else "does not exist"
    raise Mistake(f"{field}: {problem}", "give class folders, or a CSV path,label[,split[,group]]")


def _to_judge(clips: Sequence[Clip], field: str) -> list[Clip]:
    """Return the clips of val and test, all that a study reads that trains nothing."""
    kept = [clip for clip in clips if clip.split != "train"]
    if not any(clip.split == "val" for clip in kept):
        what = f"{field}: no val clips ({len(clips)} clips in all)"
        raise Mistake(what, "name some of them val, or give no splits at all")
    return kept


def _check_classes(clips: Sequence[Clip], field: str, needs_labels: bool) -> None:
    if not clips:
        raise Mistake(f"{field}: no videos", f"known endings: {' '.join(folders.SUFFIXES)}")
    without = [clip.path for clip in clips if not clip.label]
    if 0 < len(without) < len(clips):
        what = f"{field}: {len(without)} of {len(clips)} clips have no label, such as {without[0]}"
        raise Mistake(what, "give every clip a label, or none")
    classes = {clip.label for clip in clips}
    if len(classes) == 1 and needs_labels:
        only = f'only one class, "{classes.pop()}" ({len(clips)} videos)'
        raise Mistake(f"{field}: {only}", "give at least two: a folder a class, or a label a row")


def _check_splits(clips: Sequence[Clip], needed: Sequence[str], field: str) -> None:
    """Refuse a class that could not be learnt or not be judged."""
    counts = Counter((clip.label, clip.split) for clip in clips)
    for label in sorted({clip.label for clip in clips}):
        for split in needed:
            if counts[label, split] == 0:
                found = ", ".join(f"{counts[label, side]} {side}" for side in splits.SIDES)
                raise Mistake(
                    f'{field}: class "{label}" has no {split} clips ({found})',
                    "give the class more videos (more groups, if you name groups), or give no "
                    "splits at all:\n  paretoken then splits by group",
                )
