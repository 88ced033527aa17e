"""Something-Something V2's annotations (Goyal et al., ICCV 2017; videos <id>.webm).

    something-something-v2-train.json, -validation.json, -test.json      or train.json, ...
        [{"id": "78687", "label": "holding a cup", "template": "Holding [something]"}, ...]
    test-answers.csv     1420;Holding something           of later releases

A class is a template without its brackets. The test split is left out where it has no answers.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

FOLDS = 1
SPLITS = {"train": "train", "validation": "val"}
PREFIX = "something-something-v2-"


def entries(annotations: Path, fold: int, field: str) -> list[Clip]:
    """Return the clips; a path is the name of a video without its ending."""
    clips = []
    for name, split in SPLITS.items():
        for row in _read(annotations, name, field):
            clips.append(Clip(str(row["id"]), _class(row["template"]), split))
    answers = annotations / "test-answers.csv"
    if answers.is_file():
        with answers.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter=";") if len(row) == 2]
        clips += [Clip(number, _class(label), "test") for number, label in rows]
    return clips


def _class(template: str) -> str:
    return template.replace("[", "").replace("]", "").strip()


def _read(annotations: Path, name: str, field: str) -> list[dict[str, Any]]:  # Any: JSON
    for path in (annotations / f"{PREFIX}{name}.json", annotations / f"{name}.json"):
        if path.is_file():
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
                return [{"id": row["id"], "template": row["template"]} for row in rows]
            except (ValueError, KeyError, TypeError) as error:
                what = f"{field}: {path.name} is not as published ({type(error).__name__}: {error})"
                raise Mistake(what, "it should be a list of id and template") from error
    raise Mistake(f"{field}: no {PREFIX}{name}.json there", "give the folder of the annotations")
