"""UCF101's lists (Soomro et al., arXiv 1212.0402), of the folder `ucfTrainTestlist`.

    trainlist01.txt    ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
    testlist01.txt     ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi

There are three folds. Clips of one `g` of a class are of one source video: a group.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from workloads.datasets import lists
from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

FOLDS = 3


def entries(annotations: Path, fold: int, field: str) -> list[Clip]:
    """Return the clips of a fold; a path is the name of a video without its ending."""
    clips = []
    for split in ("train", "test"):
        path = annotations / f"{split}list{fold:02d}.txt"
        if not path.is_file():
            raise Mistake(f"{field}: no {path.name} there", "give the folder ucfTrainTestlist")
        for line in lists.read(path, field).splitlines():
            if line.strip():
                clips.append(_clip(PurePosixPath(line.split()[0]), split, path, field))
    return clips


def _clip(video: PurePosixPath, split: str, path: Path, field: str) -> Clip:
    if len(video.parts) != 2:
        raise Mistake(f"{field}: {path.name} names {video}, not CLASS/VIDEO.avi", "is it UCF101's?")
    return Clip(video.stem, video.parts[0], split, video.stem.rpartition("_c")[0])
