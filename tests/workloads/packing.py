"""Packed tokens with random contents, for tests of what reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.tokens import Grid, Layout, Tokens


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(
    lengths: tuple[int, ...],
    dim: int = 8,
    clips: tuple[int, ...] | None = None,
    grid: Grid = (4, 4, 4),
    layout: Layout | None = None,
    masses: bool = False,
) -> Tokens:
    """Return tokens in sequences of these lengths, in random cells, of random whole sizes."""
    num, generator = sum(lengths), torch.Generator().manual_seed(0)
    coord_N3 = torch.stack([torch.randint(n, (num,), generator=generator) for n in grid], dim=1)
    size_N = torch.randint(1, 6, (num,), generator=generator).float()
    is_equal = len(set(lengths)) == 1
    return Tokens(
        x_ND=draw(num, dim),
        coord_N3=coord_N3,
        size_N=size_N,
        mass_N=size_N if masses else None,
        lengths=lengths,
        clips=clips or tuple(range(len(lengths))),
        num_prefix=0,
        grid=grid,
        layout=layout or (Layout.EQUAL if is_equal else Layout.RAGGED),
    )
