"""The light decoder of masked pre-training: from encoded visible tokens to the pixels of others.

    both = bridge(visible) + P, mask token + P       P: its own positions
    pred = head(norm(blocks(both)))                  of the hidden tokens alone

Tokens that are neither visible nor asked for do not enter. Batches are packed: clips may differ in
how many tokens are visible and hidden.

Legend: N packed tokens, V values of a token, L cells of a grid, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from workloads.blocks import Attention, Block, Mlp
from workloads.mistakes import Mistake
from workloads.parts import Positions, sincos_1d, sincos_3d
from workloads.reducers.base import Chain, Host
from workloads.tokens import Grid, Tokens, clip_of_token, take
from workloads.trace import Trace

REVISION = 1


_NO_CHAIN = Chain((), Host(depth=0, dim=0, heads=0, tubelet=1, patch=1, std=()))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the decoder; the papers: half of the encoder's width and heads, depth 4."""

    dim: int = 192
    """Width of a token."""
    depth: int = 4
    """Blocks."""
    heads: int = 3
    """Attention heads; they share the width."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP / width."""
    positions: Literal["flat", "separable"] = "flat"
    """Sin-cos over the flat index (the papers), or a share of the channels for each axis."""
    norm_eps: float = 1e-6
    """LayerNorm epsilon, also of the norm behind the encoder."""
    last_eps: float = 0.0
    """That of the norm before the prediction, 0 = as the others; transformers has 1e-5."""
    encoder_norm: bool = True
    """Whether a norm stands behind the encoder."""
    qv_bias: bool = True
    """Whether queries and values have a bias."""
    norm_pixels: bool = True
    """Predict pixels normalised within their token, or as they are, in 0..1."""

    def __post_init__(self) -> None:
        if self.depth < 1 or self.dim % self.heads or self.dim % 2:
            raise Mistake(
                f"decoder: dim={self.dim} must be even and a multiple of heads={self.heads}, "
                f"depth={self.depth} 1 or more"
            )


class Decoder(nn.Module):
    """From encoded visible tokens to the pixels of targets."""

    def __init__(self, config: Config, dim: int, grid: Grid, num_pixels: int) -> None:
        super().__init__()
        width, hidden = config.dim, int(config.dim * config.mlp_ratio)
        self.bridge = nn.Linear(dim, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(width))
        flat = config.positions == "flat"
        table_LD = sincos_1d(math.prod(grid), width) if flat else sincos_3d(grid, width)
        self.positions = Positions(table_LD, grid)
        self.blocks = nn.ModuleList(
            Block(
                nn.LayerNorm(width, config.norm_eps),
                Attention(width, config.heads, bias="qv" if config.qv_bias else "none"),
                nn.LayerNorm(width, config.norm_eps),
                Mlp(width, hidden),
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, config.last_eps or config.norm_eps)
        self.head = nn.Linear(width, num_pixels)

    def forward(self, visible: Tokens, hidden: Tokens, trace: Trace) -> Tensor:
        """Return predictions of the hidden tokens, (N, values), in their order."""
        trace.add("decode", visible, lambda n: n * self.bridge.weight.numel())
        known_ND = self.bridge(visible.x_ND)
        known_ND = known_ND + self.positions(visible).to(known_ND.dtype)
        asked_ND = self.mask_token.to(known_ND.dtype) + self.positions(hidden).to(known_ND.dtype)
        both, place_N = _joined(visible, hidden, torch.cat([known_ND, asked_ND]))
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            trace.add("decode", both, partial(_macs, block), layer)
            both = block(both, _NO_CHAIN, layer, Trace())
        trace.add("decode", hidden, lambda n: n * self.head.weight.numel())
        return self.head(self.norm(both.x_ND[place_N]))


def _macs(block: Block, n: int) -> int:
    return block.attn.macs(n) + block.mlp.macs(n)


def _joined(visible: Tokens, hidden: Tokens, x_ND: Tensor) -> tuple[Tokens, Tensor]:
    """Return visible and hidden tokens of each clip as one sequence, and where the hidden ones are.

    Args:
        visible, hidden: where they lie.
        x_ND: all visible ones, then all hidden ones.
    """
    clip_N = torch.cat([clip_of_token(visible), clip_of_token(hidden)])
    order_N = clip_N.argsort(stable=True)
    place_N = order_N.argsort(stable=True)[len(visible.x_ND) :]
    coord_N3 = torch.cat([visible.coord_N3, hidden.coord_N3])
    lengths = tuple(map(sum, zip(visible.lengths, hidden.lengths, strict=True)))
    size_N = torch.cat([visible.size_N, hidden.size_N])
    pack = visible.replace(x_ND=x_ND, coord_N3=coord_N3, size_N=size_N, mass_N=None)
    return take(pack, order_N, lengths), place_N
