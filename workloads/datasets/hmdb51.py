"""HMDB51's lists (Kuehne et al., ICCV 2011), of the folder `testTrainMulti_7030_splits`.

    brush_hair_test_split1.txt    April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1

1 is train, 2 is test, 0 is in neither; there are three folds of 70 and 30 videos a class. What
stands before the class in a name is the film it is from: a group, within a class.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from workloads.datasets import lists
from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

FOLDS = 3
SPLITS = {"1": "train", "2": "test", "0": ""}


def entries(annotations: Path, fold: int, field: str) -> list[Clip]:
    """Return the clips of a fold; a path is the name of a video without its ending."""
    ending = f"_test_split{fold}.txt"
    paths = sorted(annotations.glob(f"*{ending}"))
    if not paths:
        raise Mistake(
            f"{field}: no CLASS{ending} there", "give the folder testTrainMulti_7030_splits"
        )
    clips = []
    for path in paths:
        label = path.name.removesuffix(ending)
        for line in lists.read(path, field).splitlines():
            name, _, number = line.strip().rpartition(" ")
            if line.strip() and number not in SPLITS:
                raise Mistake(f"{field}: {path.name}: {line!r}", "it should be VIDEO.avi 0, 1 or 2")
            if SPLITS.get(number):
                stem = PurePosixPath(name.strip()).stem
                clips.append(Clip(stem, label, SPLITS[number], _film(stem, label)))
    return clips


def _film(stem: str, label: str) -> str:
    film, found, _ = stem.rpartition(f"_{label}_")
    return f"{film}/{label}" if found else ""
