"""What a forward did with its tokens: the single source of cost.

Each part of a model says which sequences entered it and what one of them costs, so that nobody has
to know the parts of a host to count them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from workloads.reducers.base import At, Reducer
from workloads.tokens import Tokens

REVISION = 1

Price = Callable[[int], int]
"""Multiply-accumulates of one sequence, from its number of tokens."""


@dataclass(frozen=True)
class Action:
    """The price of what a reducer does at one place."""

    reducer: Reducer
    at: At

    def __call__(self, n: int) -> int:
        return self.reducer.macs(self.at, n)


@dataclass(frozen=True)
class Visit:
    """Sequences that entered one part of the model."""

    part: str
    """One of `cost.PARTS`."""
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    clips: tuple[int, ...]
    """Clip of each sequence."""
    price: Price
    """What a sequence of so many tokens costs there, multiply-accumulates."""
    layer: int = 0
    num_prefix: int = 0
    """Class tokens among those of each sequence."""


@dataclass
class Trace:
    """The visits of a forward, in order."""

    visits: list[Visit] = field(default_factory=list)

    @property
    def left(self) -> tuple[int, ...]:
        """Tokens of each sequence after the last block."""
        return next(visit.lengths for visit in self.visits if visit.part == "pool")

    def add(self, part: str, tokens: Tokens, price: Price, layer: int = 0) -> None:
        """Record that tokens entered a part."""
        prefix = tokens.num_prefix
        self.visits.append(Visit(part, tokens.lengths, tokens.clips, price, layer, prefix))

    def add_action(self, part: str, tokens: Tokens, at: At, reducer: Reducer, layer: int) -> None:
        """Record that a reducer looked at tokens."""
        self.add(part, tokens, Action(reducer, at), layer)

    def add_by_clip(self, part: str, tokens: Tokens, price: Price) -> None:
        """Record work that is done once a clip, whatever its sequences."""
        num_clips = tokens.clips[-1] + 1
        self.visits.append(Visit(part, (1,) * num_clips, tuple(range(num_clips)), price))
