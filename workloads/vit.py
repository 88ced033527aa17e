"""The video transformer: one loop for every host, with a place for each kind of token reducer.

    select (pixels) -> embed the kept tubelets -> after_embed -> add positions ->
    blocks: attention -> in_block -> MLP -> after_block -> pool -> head

Tokens are packed from the first step to the last. The forward also gives its trace, tokens entering
each part, which is the single source of cost. Hosts differ in embedding, positions, pool and head
(`models/*.py`); this file knows the base class of reducers, never a concrete one.

Legend: B clips, N packed tokens, L cells of a grid, D width, A heads, E head width, K classes, C T
H W video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workloads.attention import attend, attention_map
from workloads.parts import PatchEmbed, Positions
from workloads.reducers.base import At, Chain, Config, Host, Reducer, Seen, chain_of
from workloads.tokens import Layout, Tokens, cells, packed_index

REVISION = 1


@dataclass(frozen=True)
class Visit:
    """Tokens that entered one part of the model."""

    part: str
    """`select`, `embed`, `attention`, `match`, `mlp`, `pool` or `head`."""
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    clips: tuple[int, ...]
    """Clip of each sequence."""
    layer: int = 0
    actor: tuple[At, Reducer] | None = None
    """Who did it, where a reducer did."""


@dataclass
class Trace:
    """What a forward did with its tokens, in order."""

    visits: list[Visit] = field(default_factory=list)
    channels: int = 3
    num_classes: int = 0

    def add(self, part: str, tokens: Tokens, layer: int = 0) -> None:
        """Record that tokens entered a part."""
        self.visits.append(Visit(part, tokens.lengths, tokens.clips, layer))


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

    def forward(
        self, x_ND: Tensor, tokens: Tokens, probe: str | None
    ) -> tuple[Tensor, Seen | None]:
        """Return the output (N, D) and what a probe asked to see; `tokens` gives the sequences."""
        q_NAE, k_NAE, v_NAE = self.project(x_ND)
        out_ND = self.proj(attend(q_NAE, k_NAE, v_NAE, tokens).flatten(1))
        if probe is None:
            return out_ND, None
        return out_ND, Seen(k_NAE, attention_map(q_NAE, k_NAE, tokens) if probe == "map" else None)


class Mlp(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_ND)))


class Block(nn.Module):
    """Pre-norm attention and MLP, with a place for reducers between the two and after both."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, norm_eps: float, bias: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.attn = Attention(dim, heads, bias)
        self.norm2 = nn.LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tokens, chain: Chain, layer: int, trace: Trace) -> Tokens:
        trace.add("attention", tokens, layer)
        out_ND, seen = self.attn(self.norm1(tokens.x_ND), tokens, chain.probe(layer))
        tokens = tokens.replace(x_ND=tokens.x_ND + out_ND)
        for _, reducer in chain.actors(At.IN_BLOCK, layer):
            assert seen is not None, "a reducer that acts in a block probes it"
            actor = (At.IN_BLOCK, reducer)
            trace.visits.append(Visit("match", tokens.lengths, tokens.clips, layer, actor))
            tokens = reducer.in_block(tokens, seen, layer)
        trace.add("mlp", tokens, layer)
        return tokens.replace(x_ND=tokens.x_ND + self.mlp(self.norm2(tokens.x_ND)))


class VideoTransformer(nn.Module):
    """A host with its parts; see the loop above.

    Args:
        host: what reducers may know of it.
        blocks, embed, positions, pool: the parts; `pool(tokens) -> (B, D)`.
        heads: classifiers, chosen by `head` in the forward.
        learned: parameters of reducers, by their names.
        default: the chain of a forward that names none.
    """

    def __init__(
        self,
        host: Host,
        blocks: Sequence[Block],
        embed: PatchEmbed,
        positions: Positions,
        pool: nn.Module,
        heads: Sequence[nn.Linear],
        learned: dict[str, nn.Module],
        default: tuple[Config, ...] = (),
    ) -> None:
        super().__init__()
        self.host, self.default = host, default
        self.patch_embed, self.positions, self.pool = embed, positions, pool
        self.blocks, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)
        self.num_classes = tuple(head.out_features for head in heads)
        self.learned = nn.ModuleDict(learned)

    def forward(
        self,
        clip_BCTHW: Tensor,
        chain: Chain | Sequence[Config] | None = None,
        head: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Classify clips, (B, K) logits.

        Args:
            clip_BCTHW: normalised pixels, float.
            chain: reducers to apply; () is dense; None is what the model was built or loaded with.
            head: which classifier.
            seeds: one integer a clip for reducers that draw; 0 for each if none are given.

        Raises:
            Mistake: the clip does not fit the tubelet and patch, or the chain does not fit the
            host.
        """
        return self.traced(clip_BCTHW, chain, head, seeds)[0]

    def features(
        self,
        clip_BCTHW: Tensor,
        chain: Chain | Sequence[Config] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Return what the classifier reads, (B, D)."""
        return self.pool(self.encode(clip_BCTHW, self.chain(chain), seeds, Trace()))

    def traced(
        self,
        clip_BCTHW: Tensor,
        chain: Chain | Sequence[Config] | None = None,
        head: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> tuple[Tensor, Trace]:
        """Return the logits (B, K) and the trace."""
        trace = Trace(channels=clip_BCTHW.shape[1], num_classes=self.num_classes[head])
        tokens = self.encode(clip_BCTHW, self.chain(chain), seeds, trace)
        trace.add("pool", tokens)
        trace.add("head", tokens)
        return self.heads[head](self.pool(tokens)), trace

    def chain(self, chain: Chain | Sequence[Config] | None) -> Chain:
        """Return a chain checked against this host."""
        if isinstance(chain, Chain):
            return chain if chain.host == self.host else chain_of(chain.configs, self.host)
        return chain_of(self.default if chain is None else tuple(chain), self.host)

    def encode(
        self, clip_BCTHW: Tensor, chain: Chain, seeds: Sequence[int] | None, trace: Trace
    ) -> Tokens:
        """Run the loop up to the last block and record it in `trace`."""
        tokens = self._embed(clip_BCTHW, chain, seeds or (0,) * len(clip_BCTHW), trace)
        for name, reducer in chain.actors(At.EMBED):
            tokens = reducer.after_embed(tokens, self._learned_by(name))
        tokens = tokens.replace(x_ND=tokens.x_ND + self.positions(tokens).to(tokens.x_ND.dtype))
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, chain, layer, trace)
            for name, reducer in chain.actors(At.AFTER_BLOCK, layer):
                tokens = reducer.after_block(tokens, layer, self._learned_by(name))
        return tokens

    def _learned_by(self, name: str) -> nn.Module | None:
        return dict(self.learned.items()).get(name)

    def _embed(
        self, clip_BCTHW: Tensor, chain: Chain, seeds: Sequence[int], trace: Trace
    ) -> Tokens:
        grid, clips = self.host.grid(clip_BCTHW), tuple(range(len(clip_BCTHW)))
        num_cells = grid[0] * grid[1] * grid[2]
        full = (num_cells,) * len(clips)
        coord_N3 = cells(grid, len(clips), clip_BCTHW.device)
        size_BL = chain.select(clip_BCTHW, seeds)
        for _, reducer in chain.actors(At.SELECT):
            trace.visits.append(Visit("select", full, clips, actor=(At.SELECT, reducer)))
        if size_BL is None:
            index_N, lengths, layout = None, full, Layout.GRID
            size_N = torch.ones(len(coord_N3), device=coord_N3.device)
        else:
            index_N, lengths = packed_index(size_BL)
            coord_N3, size_N = coord_N3[index_N], size_BL.flatten()[index_N].float()
            layout = Layout.EQUAL if len(set(lengths)) == 1 else Layout.RAGGED
        x_ND = self.patch_embed(clip_BCTHW, grid, index_N)
        tokens = Tokens(
            x_ND, coord_N3, size_N, None, lengths, clips, self.host.num_prefix, grid, layout
        )
        trace.add("embed", tokens)
        return tokens
