"""A study as data: its stages, what may vary in them, what is optimised, and the keys of it all.

A stage is pretraining, fine-tuning or evaluation with one frozen config and the stages it reads.
Equal stages have equal keys, over all studies and machines, so none is run twice. The stages of a
study as they are written are its dense model: trial 0.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch

from search_spaces.fit import (
    Learner,
    StageConfig,
    refuse_grids,
    refuse_other_model,
    refuse_other_teacher,
    refuse_unfit,
    with_field,
)
from search_spaces.objectives import GMACS, TOP1, Objective
from search_spaces.space import Space
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
    losses,
    mae,
    merging,
    metrics,
    optim,
    parts,
    pretrain,
    readers,
    tokens,
    trace,
    training,
    vit,
)
from workloads.datasets import synthetic
from workloads.knobs import Choice, canonical, key_of, knobs_of, shown
from workloads.mistakes import Mistake
from workloads.reducers import base

Kind = Literal["pretrain", "finetune", "evaluate"]
Control = Literal["drop", "frames", "resolution", "tome", "tome_schedule", "grid", "masking"]

_CONFIGS = {
    "pretrain": pretrain.Config,
    "finetune": finetune.Config,
    "evaluate": evaluate.Config,
}

# What a stage goes through beside the modules that its config names. Each must have a REVISION.
_ALWAYS = (vit, blocks, trace, parts, clips, frames, attention, tokens)
_BY_KIND = {
    "pretrain": (pretrain, training, mae, decoder, branches, losses, augment, optim),
    "finetune": (finetune, training, branches, losses, augment, optim),
    "evaluate": (evaluate, augment, cost, metrics),  # augment: it normalises pixels
}
_BY_REDUCERS = (base, merging)  # which of them merges is their own affair


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One piece of work: what to do, and which finished stages it reads."""

    kind: Kind
    config: StageConfig
    inputs: tuple[tuple[Literal["weights", "teacher"], Stage], ...] = ()
    name: Kind | Literal[""] = ""
    """What paths call it where two stages are of one kind; "" = as its kind. What classifies images
    may be the `pretrain` of what classifies videos. No part of its key."""

    @property
    def label(self) -> str:
        """What paths begin with."""
        return self.name or self.kind

    def key(self, manifest_digest: str) -> str:
        """Return the name of this work in the store: equal for equal results."""
        inputs = [(role, stage.key(manifest_digest)) for role, stage in self.inputs]
        build = torch.__version__.split("+")[0]  # the same work on a CPU and on a GPU
        facts = [self.kind, canonical(self.config), self._revisions(), inputs]
        return key_of([*facts, manifest_digest, {"torch": build, **readers.versions()}])

    def chain(self) -> Iterator[Stage]:
        """Yield the stages that this one needs, in order, and itself last."""
        for _, stage in self.inputs:
            yield from stage.chain()
        yield self

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


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question, and everything that decides its answer."""

    name: str
    question: str
    stages: tuple[Stage, ...]
    """In order; the last one is an evaluation. As they stand they are the dense model."""
    space: Space
    objectives: tuple[Objective, ...] = (TOP1, GMACS)
    controls: tuple[Control, ...] = tuple(kind for kind in get_args(Control) if kind != "grid")
    """Derived for each point of the front, at its tokens; `grid`, the same clip with all of them,
    is of use where clips vary."""
    sampler: str = "tpe"
    """A function of `orchestrator/samplers.py`."""
    trials: int
    """In all, dense included; more may be asked for later."""
    seed: int = 0
    data: synthetic.Config | None = None
    """Clips to make where none are given."""

    def key(self, manifest_digest: str) -> str:
        """Return the name of this study on these clips; its wording and length do not matter."""
        aside = ("name", "question", "trials", "data")
        fields = [f.name for f in dataclasses.fields(self) if f.name not in aside]
        whole = key_of([{name: getattr(self, name) for name in fields}, manifest_digest])
        return whole[:16]  # a folder name that people see

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise Mistake(f"trials={self.trials} must be 1 or more", "dense alone is one trial")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise Mistake(f"study: name={self.name!r} is no plain word", "it names a folder")
        for field in dataclasses.fields(self):
            for place in _mutable(getattr(self, field.name), field.name):
                raise Mistake(f"study: {place} can be changed", "write (...), not [...] or {...}")
        if sorted(o.direction for o in self.objectives) != ["max", "min"]:
            shown = ", ".join(f"{o.name} ({o.direction})" for o in self.objectives)
            raise Mistake(f"study: objectives=({shown})", "one to raise and one to lower")
        for control in self.controls:
            if control not in get_args(Control):
                known = ", ".join(get_args(Control))
                raise Mistake(f"study: controls has {control!r}", f"there are {known}")
        _refuse_stages(self.stages)
        labels = [stage.label for stage in self.stages]
        for path, _ in self.space.domains:
            if path.partition(".")[0] not in labels:
                raise Mistake(f"space: {path!r} is of no stage of this study", f"{labels}")

    @property
    def trains(self) -> bool:
        """Whether any stage learns."""
        return any(stage.kind != "evaluate" for stage in self.stages)

    def plan(self, chosen: Mapping[str, Any]) -> Stage:
        """Return the last stage with the chosen values in it and in all that it needs.

        Of stages with one label a path names the last: a student, not its teacher.

        Raises:
            Mistake: a path names no stage or field.
        """
        made: dict[Stage, Stage] = {}
        named = {stage.label: stage for stage in self.stages}
        for stage in self.stages:
            config = stage.config
            for path, value in chosen.items():
                label, _, field = path.partition(".")
                if named.get(label) == stage:
                    config = with_field(config, field, value)
            inputs = tuple((role, made[needed]) for role, needed in stage.inputs)
            made[stage] = replace(stage, config=config, inputs=inputs)
        return made[self.stages[-1]]

    def check(self) -> None:
        """Build every kind of plan that the search may come to, before any work starts.

        Raises:
            Mistake: a chain is not legal in its host, a clip does not fit, a field does not exist.
        """
        plans = {self.plan(chosen): None for chosen in ({}, *self.space.examples())}  # each once
        for config, learner in {pair: None for plan in plans for pair in _with_learners(plan)}:
            refuse_unfit(config, learner)
        for learner, source in {pair: None for plan in plans for pair in _successors(plan)}:
            refuse_other_model(learner, source)
        for student, teacher in {pair: None for plan in plans for pair in _taught(plan)}:
            refuse_other_teacher(student, teacher)
        for config, learner in {p: None for plan in self._between() for p in _with_learners(plan)}:
            refuse_grids(config, learner)

    def _between(self) -> Iterator[Stage]:
        """Yield plans for every length and side: what fits at both ends may not between them."""
        for name, path, number in self.space.numbers():
            if path.endswith((".clip.frames", ".clip.size")):
                yield from map(self.plan, self.space.examples({name: number}))

    def smoke(self) -> Study:
        """Return the same study in seconds: synthetic clips, a tiny model, 2 trials."""
        data = synthetic.Config(train=32, val=16, test=8, side=32, frames=8)
        small: dict[Stage, Stage] = {}
        for stage in self.stages:
            inputs = tuple((role, small[needed]) for role, needed in stage.inputs)
            small[stage] = replace(_shrink(stage), inputs=inputs)
        stages = tuple(small.values())
        return replace(self, stages=stages, trials=2, data=data)


def _mutable(value: Any, place: str) -> Iterator[str]:  # Any: whatever stands in a study
    """Yield where something cannot be hashed, as a key must be: a list in place of a tuple."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _mutable(getattr(value, field.name), f"{place}.{field.name}")
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _mutable(item, f"{place}[{i}]")
    elif not isinstance(value, Hashable):
        yield f"{place}={value!r}"


def _refuse_stages(stages: tuple[Stage, ...]) -> None:
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
        _refuse_teacher(stage)
        if stage.label not in _CONFIGS or (stage.label == "evaluate") != (stage.kind == "evaluate"):
            what = f"study: a stage of kind {stage.kind!r} cannot be called {stage.name!r}"
            raise Mistake(what, "pretrain and finetune are names for what trains")
        weights = dict(stage.inputs).get("weights")
        if stage.kind == "evaluate" and (weights is None or weights.kind != "finetune"):
            remedy = 'inputs=(("weights", train),), with a stage that trains a classifier'
            raise Mistake("study: an evaluation reads no weights of a finetune", remedy)
        if stage.kind == "pretrain" and weights is not None and weights.kind != "pretrain":
            what = f"study: a pretrain reads weights of a {weights.kind}"
            raise Mistake(what, "only another pretrain has a decoder, too")


def _refuse_teacher(stage: Stage) -> None:
    teacher = dict(stage.inputs).get("teacher")
    if teacher is not None and stage.kind == "evaluate":
        raise Mistake("study: an evaluation has no teacher", "a training may")
    if teacher is not None and not isinstance(teacher.config, finetune.Config):
        raise Mistake(f"study: a stage of kind {teacher.kind!r} cannot teach", "a finetune can")
    wanted = isinstance(stage.config, Learner) and stage.config.distil.weight > 0
    if wanted and teacher is None:
        what = f"study: {stage.kind} has distil.weight above 0 and no teacher"
        raise Mistake(what, 'inputs=(("teacher", train),), with a stage that trains before it')


def _with_learners(plan: Stage) -> Iterator[tuple[StageConfig, Learner]]:
    """Yield the config of each stage and of the training whose model it uses."""
    for stage in plan.chain():
        source = stage if stage.kind != "evaluate" else dict(stage.inputs)["weights"]
        assert isinstance(source.config, Learner), "checked when the study is written"
        yield stage.config, source.config


def _successors(plan: Stage) -> Iterator[tuple[Learner, Learner]]:
    """Yield each training that starts from the weights of another one, and that one."""
    for stage in plan.chain():
        source = dict(stage.inputs).get("weights")
        if source is not None and isinstance(stage.config, Learner):
            assert isinstance(source.config, Learner), "checked when the study is written"
            yield stage.config, source.config


def _taught(plan: Stage) -> Iterator[tuple[Learner, finetune.Config]]:
    """Yield each training that learns from a teacher, and the teacher's."""
    for stage in plan.chain():
        if isinstance(stage.config, Learner) and stage.config.distil.weight:
            _refuse_teacher(stage)  # the weight may be one that a search comes to
            source = dict(stage.inputs)["teacher"].config
            assert isinstance(source, finetune.Config), "checked when the study is written"
            yield stage.config, source


def _shrink(stage: Stage) -> Stage:
    clip = replace(stage.config.clip, frames=8, stride=1.0, size=32)
    config: StageConfig = replace(stage.config, clip=clip, batch=8)
    if isinstance(config, Learner):
        model = replace(cast(Any, config.model), dim=16, heads=2, patch=8, frames=8, size=32)
        config = replace(config, steps=4, model=model)
    if isinstance(config, pretrain.Config):
        config = replace(config, decoder=replace(config.decoder, dim=12, heads=2))
    return replace(stage, config=config)


def params_of(plan: Stage, paths: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a person calls a plan: its reducers, their knobs, and whatever else varies.

    The evaluated chain stands bare (`reducer`, `tau`), that of training with `finetune.` before it.
    """
    params: dict[str, Any] = {}
    last = {stage.label: stage for stage in plan.chain()}  # as paths are understood
    for stage in reversed(last.values()):
        prefix = "" if stage.kind == "evaluate" else f"{stage.label}."
        own = _chain_params(stage.config.reducers)
        params |= {prefix + name: value for name, value in own.items()}
    plain = {path: value for path, value in paths.items() if not path.endswith(".reducers")}
    return params | plain


def _chain_params(configs: tuple[base.Config, ...]) -> dict[str, Any]:
    names = [name for config in configs for name in knobs_of(type(config))]
    params: dict[str, Any] = {"reducer": base.name_of_chain(configs)}
    for config in configs:
        idle = getattr(config, "idle", ())  # where knobs exclude each other
        for name, knob in knobs_of(type(config)).items():
            value = getattr(config, name)
            if name in idle:
                continue
            if isinstance(knob, Choice) and value == getattr(type(config)(), name):
                continue  # the usual kind needs no mention
            label = f"{base.name_of(config)}.{name}" if names.count(name) > 1 else name
            params[label] = shown(value)
    return params
