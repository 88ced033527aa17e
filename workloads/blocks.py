"""Blocks of a transformer on packed tokens, put together from parts that hosts choose.

Legend: N packed tokens, S sequences, L tokens of one, D width, A heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workloads.attention import attend, attend_and_show
from workloads.reducers.base import At, Chain, Seen
from workloads.tokens import Tokens
from workloads.trace import Trace

REVISION = 1


class Attention(nn.Module):
    """Multi-head self-attention; `bias` is "qv" (VideoMAE: none for the keys), "qkv" or "none"."""

    def __init__(self, dim: int, heads: int, bias: str = "qv") -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias == "qkv")
        if bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.bias = bias
        self.proj = nn.Linear(dim, dim)

    def project(self, x_ND: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each (N, A, E)."""
        bias: Tensor | None = self.qkv.bias
        if self.bias == "qv":
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_ND, self.qkv.weight, bias)
        return qkv.view(len(x_ND), 3, self.heads, -1).unbind(dim=1)

    def mix(self, out_ND: Tensor, v_ND: Tensor) -> Tensor:
        """Return what enters the last projection; a host may add to the attended values."""
        return out_ND

    def forward(
        self, x_ND: Tensor, tokens: Tokens, probe: str | None
    ) -> tuple[Tensor, Seen | None]:
        """Return the output (N, D) and what a probe asked to see; `tokens` gives the sequences."""
        q_NAE, k_NAE, v_NAE = self.project(x_ND)
        if probe == "map":
            out_NAE, map_SLL = attend_and_show(q_NAE, k_NAE, v_NAE, tokens)
            seen: Seen | None = Seen(k_NAE, map_SLL)
        else:
            out_NAE = attend(q_NAE, k_NAE, v_NAE, tokens)
            seen = Seen(k_NAE, None) if probe else None
        return self.proj(self.mix(out_NAE.flatten(1), v_NAE.flatten(1))), seen

    def macs(self, n: int) -> int:
        """Return the cost of a sequence of `n` tokens."""
        dim = self.qkv.in_features
        return 4 * n * dim**2 + 2 * n**2 * dim


class Mlp(nn.Module):
    """Two layers with an activation between them; exact GELU by default."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation or nn.GELU()

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_ND)))

    def macs(self, n: int) -> int:
        """Return the cost of `n` tokens."""
        return 2 * n * self.fc1.in_features * self.fc1.out_features


class Block(nn.Module):
    """Pre-norm attention and MLP, with a place for reducers between the two.

    Args:
        norm1, norm2: of the width of a token.
        attn, mlp: see above.
        scale1, scale2: layer scale of a host that has it.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attn: Attention,
        norm2: nn.Module,
        mlp: Mlp,
        scale1: nn.Module | None = None,
        scale2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm1, attn, norm2, mlp
        self.scale1, self.scale2 = scale1 or nn.Identity(), scale2 or nn.Identity()

    def forward(self, tokens: Tokens, chain: Chain, layer: int, trace: Trace) -> Tokens:
        tokens = self.attended(tokens, chain, layer, trace)
        trace.add("mlp", tokens, self.mlp.macs, layer)
        return tokens.replace(x_ND=tokens.x_ND + self.scale2(self.mlp(self.norm2(tokens.x_ND))))

    def attended(self, tokens: Tokens, chain: Chain, layer: int, trace: Trace) -> Tokens:
        """Return tokens after attention and the reducers that act behind it."""
        trace.add("attention", tokens, self.attn.macs, layer)
        out_ND, seen = self.attn(self.norm1(tokens.x_ND), tokens, chain.probe(layer))
        return reduce(
            tokens.replace(x_ND=tokens.x_ND + self.scale1(out_ND)), seen, chain, layer, trace
        )


def reduce(tokens: Tokens, seen: Seen | None, chain: Chain, layer: int, trace: Trace) -> Tokens:
    """Let the reducers of a chain act inside a block."""
    for _, reducer in chain.actors(At.IN_BLOCK, layer):
        assert seen is not None, "a reducer that acts in a block probes it"
        trace.add_action("match", tokens, At.IN_BLOCK, reducer, layer)
        tokens = reducer.in_block(tokens, seen, layer)
    return tokens
