"""Hosts: what differs between video transformers (embedding, positions, blocks, pools, heads)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Generator, nn

from workloads.reducers import base
from workloads.tokens import Grid
from workloads.vit import VideoTransformer


@runtime_checkable
class HostConfig(Protocol):
    """What the Config of every host offers beside its own fields."""

    @property
    def dim(self) -> int:
        """Width of a token."""

    @property
    def depth(self) -> int:
        """Blocks."""

    @property
    def tubelet(self) -> int:
        """Frames of a token."""

    @property
    def patch(self) -> int:
        """Spatial side of a token, pixels."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Pixel mean in 0..1 units."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Pixel standard deviation in 0..1 units."""

    @property
    def grid(self) -> Grid:
        """Token grid of a training clip."""

    def build(
        self, num_classes: int, reducers: Sequence[base.Config] = (), seed: int = 0
    ) -> VideoTransformer:
        """Return a model with random weights."""

    def host(self, reducers: Sequence[base.Config] = ()) -> base.Host:
        """Return what reducers may know of a model that was built with some of them."""


def learned_by(
    reducers: Sequence[base.Config], dim: int, grid: Grid, generator: Generator
) -> dict[str, nn.Module]:
    """Return freshly drawn parameters of those reducers that learn something, by their names."""
    parts = {base.name_of(config): config.parameters(dim, grid, generator) for config in reducers}
    return {name: part for name, part in parts.items() if part is not None}
