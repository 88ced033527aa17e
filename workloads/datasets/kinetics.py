"""Kinetics' lists (Kay et al., arXiv 1705.06950; 400, 600 and 700): CSV files, a row a clip.

    label,youtube_id,time_start,time_end,split[,is_cc]
    testifying,---QUuC4vJs,84,94,validate

Crawlers name a clip <youtube_id>_000084_000094.mp4, or by its id alone. Clips of one id are of one
source: a group. A test list without labels is left out.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from workloads.datasets import lists
from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

FOLDS = 1
WHOLE = "is the list whole?"
COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
SPLITS = {"train": "train", "validate": "val", "validation": "val", "val": "val", "test": "test"}


def entries(annotations: Path, fold: int, field: str) -> list[Clip]:
    """Return the clips of a list or a folder of them; a path is a name without its ending."""
    paths = [annotations] if annotations.is_file() else sorted(annotations.glob("*.csv"))
    clips = [clip for path in paths for clip in _clips(path, field)]
    if not clips:
        raise Mistake(f"{field}: no list of Kinetics there", f"its columns are {','.join(COLUMNS)}")
    return clips


def _clips(path: Path, field: str) -> list[Clip]:
    table = csv.DictReader(io.StringIO(lists.read(path, field), newline=""), restval="")
    try:
        if not {*COLUMNS} <= {*(table.fieldnames or ())}:
            return []  # a test list without labels, or a table of another kind
        return [_clip(row, f"{field}: {path.name}: row {table.line_num}") for row in table]
    except csv.Error as error:
        what = f"{field}: {path.name}: row {table.reader.line_num} is not as published ({error})"
        raise Mistake(what, WHOLE) from error


def _clip(row: dict[str, str], place: str) -> Clip:
    for name in COLUMNS[1:]:
        if not row[name].strip():
            raise Mistake(f"{place} has no {name}", WHOLE)
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
        split = SPLITS[row["split"].strip()]
    except (ValueError, KeyError, OverflowError) as error:
        raise Mistake(f"{place} is not as published ({error})", WHOLE) from error
    video = row["youtube_id"].strip()
    return Clip(f"{video}_{start:06d}_{end:06d}", row["label"].strip(' "'), split, video)
