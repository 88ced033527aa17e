"""Something-Something V2's annotations (Goyal et al., ICCV 2017; videos <id>.webm).

    something-something-v2-train.json, -validation.json, -test.json      or train.json, ...
        [{"id": "78687", "label": "holding a cup", "template": "Holding [something]"}, ...]
    test-answers.csv     1420;Holding something           of later releases

A class is a template without its brackets. The test split is left out where it has no answers.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from workloads.datasets import lists
from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

FOLDS = 1
SPLITS = {"train": "train", "validation": "val"}
PREFIX = "something-something-v2-"
SHAPE = "it should be a list of objects with id and template"


def entries(annotations: Path, fold: int, field: str) -> list[Clip]:
    """Return the clips; a path is the name of a video without its ending."""
    clips = []
    for name, split in SPLITS.items():
        for number, template in _read(annotations, name, field):
            clips.append(Clip(number, _class(template), split))
    answers = annotations / "test-answers.csv"
    if answers.is_file():
        clips += _answers(answers, field)
    return clips


def _answers(path: Path, field: str) -> list[Clip]:
    table = csv.reader(io.StringIO(lists.read(path, field), newline=""), delimiter=";")
    try:
        rows = [row for row in table if len(row) == 2]
    except csv.Error as error:
        what = f"{field}: {path.name}: row {table.line_num} is not as published ({error})"
        raise Mistake(what, "it should be ID;LABEL") from error
    return [Clip(number, _class(label), "test") for number, label in rows]


def _class(template: str) -> str:
    return template.replace("[", "").replace("]", "").strip()


def _read(annotations: Path, name: str, field: str) -> list[tuple[str, str]]:
    """Return id and template of each row."""
    for path in (annotations / f"{PREFIX}{name}.json", annotations / f"{name}.json"):
        if path.is_file():
            text, place = lists.read(path, field), f"{field}: {path.name}"
            try:
                rows = json.loads(text)
            except ValueError as error:
                raise Mistake(f"{place} is not as published ({error})", SHAPE) from error
            if not isinstance(rows, list):
                raise Mistake(f"{place} is not as published (no list)", SHAPE)
            return [_row(row, f"{place}: item {n}") for n, row in enumerate(rows, start=1)]
    raise Mistake(f"{field}: no {PREFIX}{name}.json there", "give the folder of the annotations")


def _row(row: Any, place: str) -> tuple[str, str]:  # Any: JSON
    found = row if isinstance(row, dict) else {}
    number, template = found.get("id"), found.get("template")
    if not isinstance(number, str | int) or not isinstance(template, str):
        raise Mistake(f"{place} is not as published ({json.dumps(row)[:80]})", SHAPE)
    return str(number), template
