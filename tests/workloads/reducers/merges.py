"""Tokens, maps and masses to merge, and one merge by vid-TLDR."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workloads.models import videomae
from workloads.reducers import vid_tldr
from workloads.reducers.base import Seen
from workloads.tokens import Layout, Tokens

HOST = videomae.Config(dim=24, depth=3, heads=2, tubelet=2, patch=4, frames=8, size=16)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masses(*shape: int, seed: int = 0) -> Tensor:
    return 1 + 5 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def a_map(*shape: int, seed: int = 0) -> Tensor:
    """Return rows that sum to 1, some sharp and some flat."""
    logits = draw(*shape, seed=seed) * torch.linspace(0.1, 3, shape[-2])[:, None]
    return logits.softmax(dim=-1)


def tokens_of(x_SLD: Tensor, mass_SL: Tensor | None = None, num_prefix: int = 0) -> Tokens:
    batch, num, dim = x_SLD.shape
    tokens = Tokens(
        x_ND=x_SLD.reshape(-1, dim),
        coord_N3=torch.arange(num).repeat(batch)[:, None].expand(-1, 3),
        size_N=torch.ones(batch * num),
        mass_N=None if mass_SL is None else mass_SL.flatten(),
        lengths=(num,) * batch,
        clips=tuple(range(batch)),
        num_prefix=num_prefix,
        grid=(1, 1, num),
        layout=Layout.EQUAL,
    )
    return tokens


def merged(
    x_SLD: Tensor, map_SLL: Tensor, asked: float, mass_SL: Tensor | None = None, prefix: int = 0
) -> Tokens:
    """Return the tokens after one merge inside a model."""
    reducer = vid_tldr.Config(counts=(asked,)).build(replace(HOST.host(), dim=x_SLD.shape[-1]))
    seen = Seen(torch.zeros(x_SLD.shape[0] * x_SLD.shape[1], 1, 1), map_SLL)
    return reducer.in_block(tokens_of(x_SLD, mass_SL, prefix), seen, layer=0)
