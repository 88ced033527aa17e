"""A study as data: its stages, what may vary in them, what is optimised, and the keys of it all.

A stage is pretraining, fine-tuning or evaluation with one frozen config and the stages it reads.
Equal stages have equal keys, over all studies and machines, so none is run twice. The stages of a
study as they are written are its dense model: trial 0.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, cast, get_args

from search_spaces.fit import (
    Learner,
    Source,
    StageConfig,
    refuse_grids,
    refuse_other_model,
    refuse_other_teacher,
    refuse_unfit,
    with_field,
)
from search_spaces.objectives import AGREEMENT, GMACS, TOP1, Objective
from search_spaces.space import Space
from search_spaces.stage import Stage, refuse_stages, refuse_teacher
from workloads import finetune, load, pretrain
from workloads.datasets import synthetic
from workloads.knobs import Choice, key_of, knobs_of, shown
from workloads.mistakes import Mistake
from workloads.reducers import base

__all__ = ["Control", "Stage", "Study", "params_of"]

Control = Literal["drop", "frames", "resolution", "tome", "tome_schedule", "grid", "masking"]


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
    first: tuple[tuple[tuple[str, Any], ...], ...] = ()  # Any: what a trial is answered
    """What the first trials after the dense one answer, in the sampler's names (`Space.answer`)."""
    sampler: str = "tpe"
    """A function of `orchestrator/samplers.py`."""
    trials: int
    """In all, dense included; more may be asked for later."""
    rungs: tuple[float, ...] = ()
    """Shares of the val clips at which a trial may be stopped, such as (1 / 16, 1 / 4); () = each
    is evaluated in full. For studies in which evaluation alone varies."""
    seed: int = 0
    confirm_seeds: int = 3
    """Further seeds on which a confirmation runs each point of the front."""
    data: synthetic.Config | None = None
    """Clips to make where none are given."""

    def key(self, manifest_digest: str) -> str:
        """Return the name of this study on these clips; its wording and length do not matter."""
        aside = ("name", "question", "trials", "confirm_seeds", "data")
        fields = [f.name for f in dataclasses.fields(self) if f.name not in aside]
        whole = key_of([{name: getattr(self, name) for name in fields}, manifest_digest])
        return whole[:16]  # a folder name that people see

    def __post_init__(self) -> None:
        _refuse_counts(self)
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
        refuse_stages(self.stages)
        self._refuse_comparisons()
        labels = [stage.label for stage in self.stages]
        for path, _ in self.space.domains:
            if path.partition(".")[0] not in labels:
                raise Mistake(f"space: {path!r} is of no stage of this study", f"{labels}")

    def _refuse_comparisons(self) -> None:
        """Refuse agreement between trainings, and rungs of what cannot be judged clip by clip."""
        if AGREEMENT in self.objectives and self.trains:
            what = "study: agreement is with the dense model of a study that trains nothing"
            raise Mistake(what, "TOP1 in its place")
        if not self.rungs:
            return
        ends = (0.0, *self.rungs, 1.0)
        if any(low >= high for low, high in pairwise(ends)):
            raise Mistake(f"study: rungs={self.rungs} must rise between 0 and 1", "(1 / 16, 1 / 4)")
        others = [path for path, _ in self.space.domains if path.partition(".")[0] != "evaluate"]
        if others:
            what = f"study: rungs, where {others[0]} varies: a training has no clips to be spared"
            raise Mistake(what, "vary evaluate.* alone, or leave rungs out")
        if not {*self.objectives} <= {TOP1, AGREEMENT, GMACS}:
            shown = ", ".join(o.name for o in self.objectives)
            raise Mistake(f"study: rungs with objectives=({shown})", "TOP1 or AGREEMENT, and GMACS")

    @property
    def trains(self) -> bool:
        """Whether any stage learns."""
        return any(isinstance(stage.config, Learner) for stage in self.stages)

    @property
    def source(self) -> load.Config | None:
        """The model from outside that is evaluated as it is, if there is one."""
        config = dict(self.stages[-1].inputs)["weights"].config
        return config if isinstance(config, load.Config) else None

    @property
    def lacks_model(self) -> bool:
        """Whether a model from outside has still to be named; one with classes is meant so."""
        given = [stage.config for stage in self.stages if isinstance(stage.config, load.Config)]
        return any(
            one.labels == load.placeholders(len(one.labels)) for one in given if not one.digest
        )

    def unlabelled(self) -> Study:
        """Return the same study for clips without labels: the dense model's stand in for them."""
        told = tuple(AGREEMENT if one == TOP1 else one for one in self.objectives)
        return replace(self, objectives=told)

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
        first = [self.space.answer(dict(asked)) for asked in self.first]
        every = ({}, *first, *self.space.examples())
        plans = {self.plan(chosen): None for chosen in every}  # each once
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
            # The space of a study of one model is made for clips of that length.
            frames = self.source.clip.frames if self.source else 8
            small[stage] = replace(_shrink(stage, frames), inputs=inputs)
        stages = tuple(small.values())
        return replace(self, stages=stages, trials=2, data=data)


def _refuse_counts(study: Study) -> None:
    if study.trials < 1:
        raise Mistake(f"trials={study.trials} must be 1 or more", "dense alone is one trial")
    if study.confirm_seeds < 1:
        what = f"confirm_seeds={study.confirm_seeds} must be 1 or more"
        raise Mistake(what, "3 tell how much a training varies")


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


def _with_learners(plan: Stage) -> Iterator[tuple[StageConfig, Source]]:
    """Yield the config of each stage and of the one whose model it uses."""
    for stage in plan.chain():
        source = stage if stage.kind != "evaluate" else dict(stage.inputs)["weights"]
        assert isinstance(source.config, Source), "checked when the study is written"
        yield stage.config, source.config


def _successors(plan: Stage) -> Iterator[tuple[Learner, Source]]:
    """Yield each training that starts from the weights of another one, and that one."""
    for stage in plan.chain():
        source = dict(stage.inputs).get("weights")
        if source is not None and isinstance(stage.config, Learner):
            assert isinstance(source.config, Source), "checked when the study is written"
            yield stage.config, source.config


def _taught(plan: Stage) -> Iterator[tuple[Learner, finetune.Config]]:
    """Yield each training that learns from a teacher, and the teacher's."""
    for stage in plan.chain():
        if isinstance(stage.config, Learner) and stage.config.distil.weight:
            refuse_teacher(stage)  # the weight may be one that a search comes to
            source = dict(stage.inputs)["teacher"].config
            assert isinstance(source, finetune.Config), "checked when the study is written"
            yield stage.config, source


def _shrink(stage: Stage, frames: int) -> Stage:
    clip = replace(stage.config.clip, frames=frames, stride=1.0, size=32)
    config: StageConfig = replace(stage.config, clip=clip)
    if isinstance(config, Source):
        model = replace(cast(Any, config.model), dim=16, heads=2, patch=8, frames=frames, size=32)
        config = replace(config, model=model)
    if not isinstance(config, load.Config):
        config = replace(config, batch=8)
    if isinstance(config, Learner):
        config = replace(config, steps=4)
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
        if stage.kind == "load":
            continue  # the same for all plans
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
