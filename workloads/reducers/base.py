"""The one class to inherit from, and the chain: what a model does with its tokens, as a value.

A reducer overrides a hook or two of `Reducer`; the others are the identity. A `Chain` is built from
Configs, checked in execution order against its host, cheap, and passed in: one loaded checkpoint is
evaluated under hundreds of chains.

Legend: B clips, L cells of a full grid, N packed tokens, C T H W video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from workloads.mistakes import Mistake
from workloads.tokens import Grid, Layout, Tokens

REVISION = 2

Probe = Literal["keys", "map"]


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a reducer may know of the model it works in."""

    depth: int
    dim: int
    heads: int
    tubelet: int
    """Frames of a token."""
    patch: int
    """Spatial side of a token, pixels."""
    std: tuple[float, ...]
    """Standard deviation that the host's pixels were divided by, per channel, in 0..1 units."""
    num_prefix: int = 0
    """Class tokens at the head of each sequence."""
    per_frame: bool = False
    """Attention within each frame instead of over the whole clip."""
    channels: int = 3
    """Colours of a clip."""
    learned: frozenset[str] = frozenset()
    """Reducers whose parameters live in this model."""

    def grid(self, clip_BCTHW: Tensor) -> Grid:
        """Return the token grid of a batch of clips; see `grid_of`.

        Raises:
            Mistake: these are no clips, or none at all.
        """
        shape = tuple(clip_BCTHW.shape)
        if len(shape) != 5 or not all(shape) or shape[1] != self.channels:
            what = f"clip: a tensor of shape {shape} holds no clips"
            raise Mistake(what, f"(clips, {self.channels} colours, frames, height, width)")
        _, _, num_frames, height, width = shape
        return self.grid_of(num_frames, height, width)

    def grid_of(self, num_frames: int, height: int, width: int) -> Grid:
        """Return the token grid of a clip.

        Raises:
            Mistake: the clip is not a whole number of tubelets long, or of patches wide.
        """
        if num_frames % self.tubelet:
            raise Mistake(
                f"clip: frames={num_frames} must be a multiple of the tubelet ({self.tubelet})",
                f"choose {max(num_frames // self.tubelet, 1) * self.tubelet} frames in the study",
            )
        if height % self.patch or width % self.patch:
            raise Mistake(
                f"clip: {height}x{width} px must be a multiple of the patch ({self.patch})",
                "choose another `size` for the clip in the study",
            )
        return num_frames // self.tubelet, height // self.patch, width // self.patch


class Seen(NamedTuple):
    """What attention shows to `in_block`, as far as a `probe` asked for it."""

    keys_NAE: Tensor
    """Keys after their projection, bias included."""
    map_SLL: Tensor | None
    """Softmax map without mass, mean over the heads, float32, detached; for the probe "map"."""


class At(IntEnum):
    """The places in a layer where a reducer can act, in execution order."""

    FRAMES = -1
    SELECT = 0
    EMBED = 1
    IN_BLOCK = 2
    AFTER_BLOCK = 3


@dataclass(frozen=True)
class Step:
    """One action of a reducer: where, what it accepts, what it leaves."""

    at: At
    layer: int
    """Block; 0 for the steps before the first one."""
    needs: Layout
    """Most irregular input it accepts."""
    gives: Layout
    """What it leaves, given the most regular input."""


class Reducer:
    """A token reduction inside a model. Stateless: `learned` holds its parameters, if any."""

    draws = False
    """Whether what it keeps depends on the seed of a clip."""

    def steps(self) -> tuple[Step, ...]:
        """Return where it acts; () when it is switched off."""
        return ()

    def check(self, grid: Grid) -> None:
        """Refuse a grid that it cannot work on, before any work.

        Raises:
            Mistake: too few frames, an odd number of them, and the like.
        """

    def accept(self, learned: nn.Module | None) -> None:
        """Refuse parameters that were made for another Config, before any work.

        Raises:
            Mistake: they are too few, or of another shape.
        """

    def grid(self, grid: Grid) -> Grid:
        """Return the grid that is left of one by `choose_frames`."""
        return grid

    def choose_frames(
        self, clip_BCTHW: Tensor, embed: Callable[[Tensor], Tensor], seeds: Sequence[int]
    ) -> Tensor:
        """Choose whole tubelets of each clip, before all else; equally many of each.

        Args:
            clip_BCTHW, seeds: as for `select`.
            embed: gives the tokens of full clips, (N, D), without positions.
        """
        return clip_BCTHW

    def select(self, clip_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor | None:
        """Choose cells by their pixels, before embedding.

        Args:
            clip_BCTHW: pixels normalised for the host.
            seeds: one for each clip, for reducers that draw.

        Returns:
            size_BL, int: the cells that the token at each cell will stand for, 0 = dropped.
        """
        return None

    def after_embed(self, tokens: Tokens, learned: nn.Module | None) -> Tokens:
        """Act on embedded tokens (a sequence a clip), before positions and class tokens."""
        return tokens

    def probe(self, layer: int) -> Probe | None:
        """Name what `in_block` wants to see of the attention of a layer."""
        return None

    def in_block(self, tokens: Tokens, seen: Seen, layer: int) -> Tokens:
        """Act between attention and MLP."""
        return tokens

    def after_block(self, tokens: Tokens, layer: int, learned: nn.Module | None) -> Tokens:
        """Act after the MLP."""
        return tokens

    def macs(self, at: At, num_tokens: int) -> int:
        """Return what one action costs on a sequence, multiply-accumulates.

        Args:
            at: which action.
            num_tokens: tokens that it looks at (cells of the grid for `select`).
        """
        return 0


class Config(Protocol):
    """What the Config of every reducer offers beside its knobs."""

    def build(self, host: Host) -> Reducer:
        """Return the reducer for a host; raises Mistake where the two do not fit."""

    def parameters(self, dim: int, grid: Grid, generator: Generator) -> nn.Module | None:
        """Return freshly drawn parameters for a model of a width, None if nothing is learned."""


def name_of(config: Config) -> str:
    """Return the name of a reducer: the name of its file."""
    return type(config).__module__.rsplit(".", 1)[-1]


_LEAVES = {
    Layout.GRID: "leaves the full grid",
    Layout.EQUAL: "leaves the same number of tokens in every clip",
    Layout.RAGGED: "leaves them ragged",
}
_NEEDS = {Layout.GRID: "the full grid", Layout.EQUAL: "the same number of tokens in every clip"}


class Chain:
    """Reducers in one model: a value, equal if its configs are, checked when built.

    Raises:
        Mistake: a step needs more regular sequences than the steps before it leave, or something
            is no reducer.
    """

    def __init__(self, configs: Sequence[Config], host: Host) -> None:
        self.configs = tuple(configs)
        self.host = host
        for config in self.configs:
            if not hasattr(config, "build") or isinstance(config, type):
                what = f"reducers: {config!r} is no reducer"
                raise Mistake(what, "a tuple of Configs, such as (rlt.Config(tau=0.1),)")
        self.names = tuple(name_of(config) for config in self.configs)
        if len({*self.names}) < len(self.names):
            what = f"reducers=({', '.join(self.names)}): the same one twice"
            raise Mistake(what, "leave one out")
        self._reducers = [config.build(host) for config in self.configs]
        self._actors: dict[tuple[At, int], list[int]] = {}
        self.layout = self._order()

    def _order(self) -> Layout:
        layout, last = Layout.GRID, ""
        steps = [(step, i) for i, reducer in enumerate(self._reducers) for step in reducer.steps()]
        for step, i in sorted(steps, key=lambda item: (item[0].layer, item[0].at)):
            if layout > step.needs:
                raise Mistake(*self._refusal(step, self.names[i], layout, last))
            if step.at == At.IN_BLOCK and (step.at, step.layer) in self._actors:
                what = f"two act inside block {step.layer}, which shows its keys to one"
                raise Mistake(f"reducers=({', '.join(self.names)}): {what}", "leave one out")
            if step.gives > layout:
                layout, last = step.gives, self.names[i]
            self._actors.setdefault((step.at, step.layer), []).append(i)
        return layout

    def _refusal(self, step: Step, name: str, layout: Layout, last: str) -> tuple[str, str]:
        what = (
            f"reducers=({', '.join(self.names)}): {name} at block {step.layer} needs "
            f"{_NEEDS[step.needs]}, {last} {_LEAVES[layout]}"
        )
        either = [" + ".join(n for n in self.names if n != out) for out in (name, last)]
        return what, f"legal here: {' | '.join(either)}"

    @property
    def draws(self) -> bool:
        """Whether any reducer draws: other seeds, other logits."""
        return any(reducer.draws for reducer in self._reducers)

    def actors(self, at: At, layer: int = 0) -> list[tuple[str, Reducer]]:
        """Return the reducers that act at one place, in order, with their names."""
        return [(self.names[i], self._reducers[i]) for i in self._actors.get((at, layer), ())]

    def probe(self, layer: int) -> Probe | None:
        """Return the most that any reducer wants to see in a layer; "map" includes "keys"."""
        asked = {reducer.probe(layer) for _, reducer in self.actors(At.IN_BLOCK, layer)}
        return "map" if "map" in asked else "keys" if "keys" in asked else None

    def check(self, grid: Grid) -> None:
        """Refuse a grid that one of the reducers cannot work on; see `Reducer.check`."""
        for reducer in self._reducers:
            reducer.check(grid)

    def accept(self, learned: Mapping[str, nn.Module]) -> None:
        """Refuse what a model has learned for other Configs; see `Reducer.accept`."""
        for name, reducer in zip(self.names, self._reducers, strict=True):
            reducer.accept(learned.get(name))

    def grid(self, grid: Grid) -> Grid:
        """Return the grid that the blocks work on: that of the frames that are chosen."""
        for _, reducer in self.actors(At.FRAMES):
            grid = reducer.grid(grid)
        return grid

    def select(self, clip_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor | None:
        """Return size_BL of all selecting reducers together, None if none selects.

        Masks are and-ed: a product of sizes, in which a plain mask counts 1 or 0 and a run length
        stays what it is.
        """
        size_BL = None
        for _, reducer in self.actors(At.SELECT):
            chosen_BL = reducer.select(clip_BCTHW, seeds)
            if chosen_BL is not None:
                size_BL = chosen_BL if size_BL is None else _both(size_BL, chosen_BL)
        return size_BL

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chain):
            return NotImplemented
        return (self.configs, self.host) == (other.configs, other.host)

    def __hash__(self) -> int:
        return hash((self.configs, self.host))

    def __repr__(self) -> str:
        return f"Chain{self.configs!r}"


def _both(first_BL: Tensor, second_BL: Tensor) -> Tensor:
    """Multiply two selections; a clip of which they have nothing in common keeps its first token
    of the first selection, for a model must see something of it.
    """
    both_BL = first_BL * second_BL
    place_B1 = (first_BL > 0).int().argmax(dim=1, keepdim=True)
    alone_BL = torch.zeros_like(first_BL).scatter(1, place_B1, first_BL.gather(1, place_B1))
    return torch.where((both_BL > 0).any(dim=1, keepdim=True), both_BL, alone_BL)


@lru_cache(maxsize=1024)
def chain_of(configs: tuple[Config, ...], host: Host) -> Chain:
    """Return the chain of some configs in a host, built once for each pair."""
    return Chain(configs, host)


def name_of_chain(configs: Sequence[Config]) -> str:
    """Return the names joined with `+`, `none` for the dense model."""
    return "+".join(name_of(config) for config in configs) or "none"
