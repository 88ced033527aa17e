"""Whether it fits: a value its field, a reducer its chain, a clip and a chain their model.

Legend: N tokens of one clip, D width.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import replace
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from workloads import evaluate, finetune
from workloads.mistakes import Mistake
from workloads.reducers import base
from workloads.tokens import Grid, Layout, Tokens, cells

StageConfig = finetune.Config | evaluate.Config

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


def grid_of(config: StageConfig, learner: finetune.Config) -> Grid:
    """Return the tokens of a clip in its model; raises Mistake where it is not a whole number."""
    clip = config.clip
    return learner.model.host().grid_of(clip.frames, clip.size, clip.size)


def refuse_unfit(config: StageConfig, learner: finetune.Config) -> None:
    """Take a clip of nothing through a chain as far as that is cheap: up to the first block.

    Raises:
        Mistake: a chain is not legal in its host, or a clip does not fit it.
    """
    for one in config.reducers:
        if not is_reducer(one):
            raise Mistake(f"reducers: {one!r} is no reducer", "a tuple of Configs")
    clip, model, grid = config.clip, learner.model, grid_of(config, learner)
    chain = base.chain_of(config.reducers, model.host(learner.reducers))
    chain.select(torch.zeros(1, 3, clip.frames, clip.size, clip.size), (0,))
    draw = torch.Generator()
    learned = {base.name_of(c): c.parameters(model.dim, model.grid, draw) for c in learner.reducers}
    chain.check(grid)
    for name, reducer in chain.actors(base.At.EMBED):
        reducer.after_embed(_blank(grid, model.dim), learned.get(name))


def _blank(grid: Grid, dim: int) -> Tokens:
    n = math.prod(grid)
    coord_N3 = cells(grid, 1, torch.device("cpu"))
    x_ND, size_N = torch.zeros(n, dim), torch.ones(n)
    return Tokens(x_ND, coord_N3, size_N, None, (n,), (0,), 0, grid, Layout.GRID)
