"""Whether it fits: a value its field, a reducer its chain, a clip and a chain their model.

Legend: N tokens of one clip, D width.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from workloads import branches, clips, evaluate, finetune, load, mae, pretrain, timing
from workloads.mistakes import Mistake
from workloads.reducers import base
from workloads.tokens import Grid, Layout, Tokens, cells
from workloads.vit import is_added

Learner = pretrain.Config | finetune.Config
"""The config of a stage that trains: it has the model."""
Source = Learner | load.Config
"""That of a stage that leaves weights."""
StageConfig = Source | evaluate.Config | timing.Config

SHOWN = 0.5  # share of visible tokens: no shape depends on it
SAME_MODEL = "the stages that pass weights on must have the same model"

# Any below: a config and a field may be of any type.


def is_reducer(value: Any) -> bool:
    """Tell whether a value can stand in a chain: a Config with what `reducers.base.Config` asks."""
    makes = hasattr(value, "build") and hasattr(value, "parameters")
    return makes and dataclasses.is_dataclass(value) and not isinstance(value, type)


def with_field(config: Any, path: str, value: Any) -> Any:
    """Return a frozen config with one field changed, however deep.

    Raises:
        Mistake: there is no such field, or it holds something else.
    """
    name, _, rest = path.partition(".")
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise Mistake(f"space: {config!r} has no field {name!r}", "end the path before it")
    kind = type(config)
    if name not in _hints(kind):
        raise Mistake(f"space: {kind.__module__} has no field {name!r}")
    if rest:
        value = with_field(getattr(config, name), rest, value)
    elif not _fits(value, hint := _hints(kind)[name]):
        what = f"space: {kind.__module__}.{name} cannot be {value!r}"
        raise Mistake(what, f"it is {inspect.formatannotation(hint)}")
    return replace(config, **{name: value})


@lru_cache
def _hints(config: type) -> dict[str, Any]:
    return get_type_hints(config)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a field of a type can hold a value; what a tuple holds is not looked at."""
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    if kind is UnionType:
        return any(_fits(value, one) for one in get_args(hint))
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)


def refuse_unfit(config: StageConfig, learner: Source) -> None:
    """Take clips of nothing through each chain as far as that is cheap: up to the first block.

    Raises:
        Mistake: a chain is not legal in its host, a clip does not fit it, or there is no such head.
    """
    _refuse_head(config, learner)
    for clip, reducers in cases_of(config):
        for one in reducers:
            if not is_reducer(one):
                raise Mistake(f"reducers: {one!r} is no reducer", "a tuple of Configs")
        _refuse_chain(clip, reducers, learner)
    if isinstance(config, pretrain.Config):
        chain = base.chain_of(config.reducers, config.model.host(config.reducers))
        mae.refuse_reducing_blocks(chain)


def refuse_grids(config: StageConfig, learner: Source) -> None:
    """Refuse clips that a model or a chain cannot take, by their shape alone; see `refuse_unfit`.

    Raises:
        Mistake: a clip is no whole number of tokens, or has too few of them, or too many.
    """
    host = learner.model.host(learner.reducers)
    for clip, reducers in cases_of(config):
        chain = base.chain_of(reducers, host)
        chain.check(chain.grid(host.grid_of(clip.frames, clip.size, clip.size)))


def cases_of(config: StageConfig) -> Iterator[tuple[clips.Config, tuple[base.Config, ...]]]:
    """Yield every clip that a stage may see, with each chain that it then goes through."""
    if isinstance(config, finetune.Config):
        yield from config.cases()
    else:
        yield config.clip, config.reducers


def _refuse_chain(clip: clips.Config, reducers: tuple[base.Config, ...], learner: Source) -> None:
    model = learner.model
    chain = base.chain_of(reducers, model.host(learner.reducers))
    grid = chain.grid(model.host().grid_of(clip.frames, clip.size, clip.size))
    chain.select(torch.zeros(1, 3, grid[0] * model.tubelet, clip.size, clip.size), (0,))
    draw = torch.Generator()
    learned = {base.name_of(c): c.parameters(model.dim, model.grid, draw) for c in learner.reducers}
    chain.check(grid)
    chain.accept({name: part for name, part in learned.items() if part is not None})
    for name, reducer in chain.actors(base.At.EMBED):
        reducer.after_embed(_blank(grid, model.dim), learned.get(name))


def refuse_other_model(learner: Learner, source: Source) -> None:
    """Refuse a training that starts from the weights of another model.

    Raises:
        Mistake: the two models differ in more than what is made for a task (pool, heads), or two
            pre-trainings in anything.
    """
    theirs, ours = source.model.host(), learner.model.host()
    if type(source.model) is not type(learner.model) or theirs != ours:
        changed = [
            f"{field.name}={getattr(ours, field.name)} ({getattr(theirs, field.name)})"
            for field in dataclasses.fields(base.Host)
            if getattr(ours, field.name) != getattr(theirs, field.name)
        ]
        kinds = f"{type(learner.model).__module__} ({type(source.model).__module__})"
        what = f"weights: the model that reads them has {', '.join(changed) or kinds}"
        raise Mistake(what, SAME_MODEL)
    needed, given = _weights(learner), _weights(source)
    if isinstance(learner, finetune.Config):
        needed = {name: shape for name, shape in needed.items() if not is_added(name)}
    parts = {name.partition(".")[0] for name in needed}
    for name in {**needed, **given}:
        known = name in needed or (name.partition(".")[0] in parts and not is_added(name))
        if known and needed.get(name) != given.get(name):
            what = f"weights: {name} is {needed.get(name)} where they are read"
            raise Mistake(f"{what}, and {given.get(name)} before", SAME_MODEL)


@lru_cache
def _weights(learner: Source) -> dict[str, tuple[int, ...]]:
    """Return the shape of whatever a training leaves, by name."""
    with torch.device("meta"):  # shapes without numbers
        if not isinstance(learner, finetune.Config) and learner.decoder is not None:
            whole = mae.build(learner.model, learner.reducers, learner.decoder, SHOWN)
            parts = mae.weights_of(whole)
        else:
            parts = learner.model.build(2, learner.reducers).state_dict()
    return {name: tuple(weight.shape) for name, weight in parts.items()}


def refuse_other_teacher(learner: Learner, source: finetune.Config) -> None:
    """Refuse a teacher that the model of a training cannot be compared with.

    Raises:
        Mistake: tokens or features of the two are of other kinds.
    """
    layers = learner.distil.layers
    with torch.device("meta"):
        model, other = (one.model.build(2, one.reducers) for one in (learner, source))
    pooled = isinstance(learner, finetune.Config)
    branches.refuse_unlike(model, other, layers, pooled)
    if learner.model.mean != source.model.mean:
        what = f"teacher: mean={source.model.mean}, that of the model {learner.model.mean}"
        raise Mistake(what, "both see the same pixels")
    if not isinstance(learner, finetune.Config):
        _refuse_other_frames(learner)
        return
    clip_of = {reducers: clip for clip, reducers in learner.cases()}
    for reducers, clip in clip_of.items():
        if model.chain(reducers).layout == Layout.RAGGED:
            continue  # has no shapes without numbers, and all of the frames
        pixels = torch.zeros(1, 3, clip.frames, clip.size, clip.size)
        taught = branches.Teacher(other, layers)(pixels)
        way = branches.Branch(reducers=reducers)
        branches.distillation(branches.encoded(model, pixels, way, None, layers), taught)


def _refuse_other_frames(learner: pretrain.Config) -> None:
    """Refuse a teacher where a student chooses frames: the two then have other cells."""
    clip, host = learner.clip, learner.model.host(learner.reducers)
    grid = host.grid_of(clip.frames, clip.size, clip.size)
    chain = base.chain_of(learner.reducers, host)
    if chain.grid(grid) != grid:
        what = f"distil: a grid of {chain.grid(grid)} has no tokens in common with {grid}"
        raise Mistake(what, "set alpha=1, or distil.weight=0")


def _refuse_head(config: StageConfig, learner: Source) -> None:
    if isinstance(config, pretrain.Config | load.Config):
        return  # it reads none
    ways = config.ways() if isinstance(config, finetune.Config) else (config,)
    heads = [way.head for way in ways]
    if not any(heads):
        return  # the first one is always there
    with torch.device("meta"):  # shapes without numbers
        num = len(learner.model.build(num_classes=2).heads)
    if not 0 <= min(heads) <= max(heads) < num:
        what = f"head={max(heads)} of a model with {num}"
        raise Mistake(what, "heads count from 0; the host says how many there are")


def _blank(grid: Grid, dim: int) -> Tokens:
    n = math.prod(grid)
    coord_N3 = cells(grid, 1, torch.device("cpu"))
    x_ND, size_N = torch.zeros(n, dim), torch.ones(n)
    return Tokens(x_ND, coord_N3, size_N, None, (n,), (0,), 0, grid, Layout.GRID)
