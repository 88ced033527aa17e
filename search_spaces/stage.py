"""A stage: one piece of work as data, and its key.

A stage is pretraining, fine-tuning, evaluation or timing with one frozen config and the stages it
reads, or a model from outside. Equal stages have equal keys, over all studies and machines, so none
is run twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from search_spaces.fit import Learner, StageConfig
from workloads import (
    attention,
    augment,
    blocks,
    branches,
    clips,
    cost,
    decoder,
    evaluate,
    finetune,
    frames,
    load,
    losses,
    mae,
    merging,
    metrics,
    optim,
    parts,
    pretrain,
    readers,
    timing,
    tokens,
    trace,
    training,
    vit,
)
from workloads.knobs import canonical, key_of
from workloads.mistakes import Mistake
from workloads.reducers import base

Kind = Literal["load", "pretrain", "finetune", "evaluate", "timing"]

# What may stand in a study; a timing is not searched.
_CONFIGS = {
    "load": load.Config,
    "pretrain": pretrain.Config,
    "finetune": finetune.Config,
    "evaluate": evaluate.Config,
}

# What a stage goes through beside the modules that its config names. Each must have a REVISION.
_ALWAYS = (vit, blocks, trace, parts, clips, frames, attention, tokens)
_BY_KIND = {
    "load": (load,),
    "pretrain": (pretrain, training, mae, decoder, branches, losses, augment, optim),
    "finetune": (finetune, training, branches, losses, augment, optim),
    "evaluate": (evaluate, augment, cost, metrics),  # augment: it normalises pixels
    "timing": (timing, evaluate, augment),
}
_BY_REDUCERS = (base, merging)  # which of them merges is their own affair


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One piece of work: what to do, and which finished stages it reads."""

    kind: Kind
    config: StageConfig
    inputs: tuple[tuple[Literal["weights", "teacher", "dense"], Stage], ...] = ()
    name: Kind | Literal[""] = ""
    """What paths call it where two stages are of one kind; "" = as its kind. What classifies images
    may be the `pretrain` of what classifies videos. No part of its key."""

    @property
    def label(self) -> str:
        """What paths begin with."""
        return self.name or self.kind

    def key(self, manifest_digest: str) -> str:
        """Return the name of this work in the store: equal for equal results."""
        if self.kind == "load":  # the same whatever it is shown
            return key_of([self.kind, canonical(self.config), self._revisions()])
        inputs = [(role, stage.key(manifest_digest)) for role, stage in self.inputs]
        build = torch.__version__.split("+")[0]  # the same work on a CPU and on a GPU
        facts = [self.kind, canonical(self.config), self._revisions(), inputs]
        return key_of([*facts, manifest_digest, {"torch": build, **readers.versions()}])

    def chain(self) -> Iterator[Stage]:
        """Yield the stages that this one needs, in order, and itself last."""
        for _, stage in self.inputs:
            yield from stage.chain()
        yield self

    def reseeded(self, by: int) -> Stage:
        """Return the same work drawn anew: `by` on top of every seed, in all that it needs, too."""
        inputs = tuple((role, stage.reseeded(by)) for role, stage in self.inputs)
        if isinstance(self.config, load.Config):
            return self
        return replace(self, config=replace(self.config, seed=self.config.seed + by), inputs=inputs)

    def _revisions(self) -> dict[str, int]:
        ways = getattr(self.config, "branches", ())  # chains of a training stand there, too
        of_reducers = _BY_REDUCERS if self.config.reducers or ways else ()
        through = (*_ALWAYS, *_BY_KIND[self.kind], *of_reducers)
        needed = {module.__name__: module.REVISION for module in through}
        modules = {*_modules_of(canonical(self.config))}
        named = {name: getattr(sys.modules.get(name), "REVISION", None) for name in modules}
        return needed | {name: found for name, found in named.items() if found is not None}


def _modules_of(value: Any) -> Iterator[str]:  # Any: JSON
    if isinstance(value, dict):
        if "type" in value:
            yield value["type"].rsplit(".", 1)[0]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _modules_of(item)


def refuse_stages(stages: tuple[Stage, ...]) -> None:
    if not stages or stages[-1].kind != "evaluate":
        kinds = [stage.kind for stage in stages]
        raise Mistake(f"study: stages={kinds} must end with an evaluation", "add one at the end")
    for i, stage in enumerate(stages):
        if not isinstance(stage.config, _CONFIGS.get(stage.kind, ())):
            what = f"study: a stage of kind {stage.kind!r} cannot run {type(stage.config)}"
            raise Mistake(what, f"kinds: {', '.join(_CONFIGS)}")
        for role, needed in stage.inputs:
            if needed not in stages[:i]:
                what = f"study: the {role} of {stage.kind} come from no stage before it"
                raise Mistake(what, "list that stage too, in front of those that read it")
        refuse_teacher(stage)
        if stage.label not in _CONFIGS or (stage.label == "evaluate") != (stage.kind == "evaluate"):
            what = f"study: a stage of kind {stage.kind!r} cannot be called {stage.name!r}"
            raise Mistake(what, "pretrain and finetune are names for what trains")
        weights = dict(stage.inputs).get("weights")
        if stage.kind == "evaluate" and (
            weights is None or weights.kind not in ("finetune", "load")
        ):
            remedy = 'inputs=(("weights", train),), with a stage that trains or loads a classifier'
            raise Mistake("study: an evaluation reads no weights of a finetune", remedy)
        if stage.kind == "pretrain" and weights is not None and weights.kind == "finetune":
            what = f"study: a pretrain reads weights of a {weights.kind}"
            raise Mistake(what, "only another pretrain has a decoder, too")


def refuse_teacher(stage: Stage) -> None:
    teacher = dict(stage.inputs).get("teacher")
    if teacher is not None and stage.kind == "evaluate":
        raise Mistake("study: an evaluation has no teacher", "a training may")
    if teacher is not None and not isinstance(teacher.config, finetune.Config):
        raise Mistake(f"study: a stage of kind {teacher.kind!r} cannot teach", "a finetune can")
    wanted = isinstance(stage.config, Learner) and stage.config.distil.weight > 0
    if wanted and teacher is None:
        what = f"study: {stage.kind} has distil.weight above 0 and no teacher"
        raise Mistake(what, 'inputs=(("teacher", train),), with a stage that trains before it')
