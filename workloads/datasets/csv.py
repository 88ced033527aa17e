"""A table of videos: `path,label[,split[,group]]` with a header, as UTF-8 CSV.

Paths are relative to the CSV, further columns are ignored, an empty cell is "not given". What
`paretoken ingest` writes also says which files decord was proved on, and that is heeded for as long
as they are the same.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

Row = tuple[int, Clip]  # with its line in the file, for messages


def rows(path: Path, field: str, needs_labels: bool = True) -> list[Clip]:
    """Return a clip for every row of a CSV; `field` names the file in a Mistake."""
    numbered = _parsed(path, field, ("path", "label") if needs_labels else ("path",))
    _check_missing(numbered, path, field)
    return [clip for _, clip in numbered]


def listed(path: Path, field: str) -> list[Clip]:
    """Return a clip for every row, whether there are labels and files or not."""
    return [clip for _, clip in _parsed(path, field, ("path",))]


def _parsed(path: Path, field: str, needed: Sequence[str]) -> list[Row]:
    try:
        numbered = _parse(path, field, needed)
    except (UnicodeDecodeError, csv.Error) as error:
        raise Mistake(f"{field}: not a UTF-8 CSV ({error})", "save it as UTF-8 CSV") from error
    _check_twice(numbered, field)
    return numbered


def _parse(path: Path, field: str, needed: Sequence[str]) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets write a BOM
        table = csv.DictReader(file, restval="")
        columns = [name.strip() for name in table.fieldnames or ()]
        for name in needed:
            if name not in columns:
                found = ", ".join(columns) or "none"
                raise Mistake(
                    f'{field}: no column "{name}" (columns found: {found})',
                    "the first line must name the columns: path,label[,split[,group]]",
                )
        table.fieldnames = columns
        return [(line := table.line_num, _clip(row, line, path, field, needed)) for row in table]


def _clip(row: dict[str, str], line: int, path: Path, field: str, needed: Sequence[str]) -> Clip:
    names = ("path", "label", "split", "group", "decoder", "sha256")
    cells = {name: row.get(name, "").strip() for name in names}
    for name in needed:
        if not cells[name]:
            raise Mistake(f"{field}: row {line} has no {name}", "fill it in, or remove the row")
    # One spelling a file, so that ./a.mp4 and a.mp4 are found to be the same.
    relative = os.path.relpath(path.parent / cells["path"], path.parent)
    # The columns of `ingest`; a person's own word is no proof, so the digest must agree later.
    proved = cells["sha256"] if cells["decoder"] == "decord" else ""
    return Clip(Path(relative).as_posix(), cells["label"], cells["split"], cells["group"], proved)


def _check_twice(numbered: Sequence[Row], field: str) -> None:
    first: dict[str, int] = {}
    for line, clip in numbered:
        if clip.path in first:
            raise Mistake(
                f"{field}: row {line} repeats {clip.path} of row {first[clip.path]}",
                "one row a video; cut a video with several labels into clips of its own",
            )
        first[clip.path] = line


def _check_missing(numbered: Sequence[Row], path: Path, field: str) -> None:
    missing = [(line, clip) for line, clip in numbered if not (path.parent / clip.path).is_file()]
    if missing:
        line, clip = missing[0]
        raise Mistake(
            f"{field}: {len(missing)} of {len(numbered)} videos do not exist, "
            f"the first in row {line}: {clip.path}",
            f"paths are relative to the CSV's folder, {path.parent}",
        )
