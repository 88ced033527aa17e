"""A model from outside: what other stages read where nothing, or not all, is trained here.

Whoever runs a study puts the weights of a checkpoint folder into the store under the key of this
stage. No path stands in its config, so equal checkpoints are one, wherever they lie.

Legend: K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads import clips, decoder
from workloads.clips import ClipSet
from workloads.mistakes import Mistake
from workloads.models import HostConfig
from workloads.reducers import base
from workloads.stage import Inputs, Report, Result

REVISION = 1
SEED = 0  # of what a folder does not have


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a checkpoint is."""

    model: HostConfig
    """Its host."""
    clip: clips.Config
    """What it is shown of a video."""
    labels: tuple[str, ...] = ()
    """Names of its classes, as long as its head; () = it has no head."""
    reducers: tuple[base.Config, ...] = ()
    """Chain that it was saved with, and may have learned for."""
    decoder: decoder.Config | None = None
    """That of a pre-training, if it is there."""
    digest: str = ""
    """sha256 of its weights; "" = none: random weights, for a study that is only tried out."""

    def names(self, classes: Sequence[str]) -> bool:
        """Tell whether its head names these classes, in this order."""
        return tuple(map(_plain, self.labels)) == tuple(map(_plain, classes))


def run(config: Config, clip_set: ClipSet, inputs: Inputs, report: Report) -> Result:
    """Return random weights where no checkpoint is meant; any other is not made by a run.

    Raises:
        Mistake: the checkpoint should have been put into the store.
    """
    if config.digest:
        what = "the checkpoint is not in the store"
        raise Mistake(what, "run the study again, with the --model that it was begun with")
    model = config.model.build(len(config.labels), config.reducers, SEED)
    return Result(dict(model.state_dict()), {}, None)


def digest_of(files: Sequence[Path]) -> str:
    """Return one sha256 for the files of a checkpoint's weights, in this order."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def places_of(labels: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Return where each class of a data set stands among the labels of a model, -1 for "".

    Upper case, blanks and underscores make no difference. Labels that are no words (`LABEL_0`) are
    those of as many classes, in alphabetical order.

    Raises:
        Mistake: a class that the model does not know.
    """
    if tuple(labels) == placeholders(len(classes)) and "" not in classes:
        return tuple(range(len(classes)))
    known = {_plain(label): place for place, label in enumerate(labels)}
    unknown = [name for name in classes if name and _plain(name) not in known]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        what = f"--data: the model has no label {', '.join(map(repr, unknown[:3]))}{more}"
        shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        raise Mistake(what, f"it has {len(labels)}: {shown}; give its names, or no labels at all")
    return tuple(known[_plain(name)] if name else -1 for name in classes)


def placeholders(num: int) -> tuple[str, ...]:
    """Return the labels that transformers gives to classes without names."""
    return tuple(f"LABEL_{i}" for i in range(num))


def _plain(label: str) -> str:
    return label.casefold().replace("_", " ").strip()
