"""FluxViT: a joint space-time host for any grid of frames and pixels, with a head for each budget.

Wang et al., "Make Your Training Flexible: Towards Deployment-Efficient Video Models", ICCV 2025,
arXiv 2503.14237; official code OpenGVLab/FluxViT (MIT). Random weights; `SIZES` are the paper's and
`from_official` renames those of a checkpoint. The selector that it is made for is reducers/flux.py.

    embed      RMSNorm of the pixels of a patch, linear, RMSNorm of the token
    positions  one learned table (sin-cos at first), an affine map a channel, then onto the grid of
               the clip: linear over time first, bicubic over space second
    attention  q and k RMS-normed over the whole width before heads are cut;
               out = proj(attended + w * v + c): the "local" positions, a skip of the values
    pool       for each budget: one query, the norm of the mean of all tokens, over normed tokens

Deviations from the official code:
* The skip works for a batch of one clip; the official `squeeze` crashes there.
* Clips may be wider than high, and tokens ragged: each clip is then pooled apart.
* One factor a channel (affine map, skip) is a vector here and a 1 x 1 x 1 convolution there,
  which weight decay pulls towards zero; vectors do not decay. The table does, but not there.
* Weights start with Xavier draws, not with a truncated normal of 0.02 (the norms make up for it).
* Drop path is left out.
Small models trained from nothing need `layer_scale=1`: 1e-5 leaves their blocks asleep.

Legend: B clips, N packed tokens, S sequences, L cells of a grid, D width, P pixel values of a
patch, A heads, E head width, F width of features, C T H W video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workloads.blocks import Attention, Block, Mlp
from workloads.mistakes import Mistake
from workloads.models import learned_by
from workloads.parts import (
    ClassToken,
    Head,
    LayerScale,
    NormedEmbed,
    Pool,
    RMSNorm,
    grid_code,
    rows_of,
)
from workloads.reducers import base
from workloads.reducers.base import Host
from workloads.tokens import Grid, Tokens, sum_by_clip
from workloads.vit import VideoTransformer

REVISION = 1
RMS_EPS, NORM_EPS = 1e-6, 1e-5
SIZES: dict[str, dict[str, Any]] = {  # Any: fields of a Config
    "small": {"dim": 384, "depth": 12, "heads": 6, "frames": 24, "size": 252},
    "base": {"dim": 768, "depth": 12, "heads": 12, "frames": 32, "size": 280},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and initialisation of a FluxViT host."""

    dim: int = 384
    """Width of a token."""
    depth: int = 12
    """Blocks."""
    heads: int = 6
    """Attention heads; they share the width."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP / width."""
    tubelet: int = 1
    """Frames of a token."""
    patch: int = 14
    """Spatial side of a token, pixels."""
    frames: int = 24
    """Frames of the grid that the position table is made for; clips may have others."""
    size: int = 252
    """Side of that grid, pixels."""
    budgets: tuple[int, ...] = (3072, 2048, 1024)
    """Tokens that each pool and head is trained for, falling; the first one teaches the others."""
    pool_heads: int = 16
    """Attention heads of a pool; they share the width."""
    features: int = 768
    """Width of what a head reads."""
    layer_scale: float = 1e-5
    """Start of the layer scale; 0 = none."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Pixel mean in 0..1 units."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Pixel standard deviation in 0..1 units."""

    def __post_init__(self) -> None:
        for name, parts in (("heads", self.heads), ("pool_heads", self.pool_heads)):
            if self.dim % parts:
                raise Mistake(f"model: dim={self.dim} must be a multiple of {name}={parts}")
        if self.dim % 16:
            what = f"model: dim={self.dim} must be a multiple of 16"
            raise Mistake(what, "positions share it: 1/4 for time, 3/8 each for row and column")
        if not self.budgets or list(self.budgets) != sorted({*self.budgets}, reverse=True):
            raise Mistake(f"model: budgets={self.budgets} must fall", "one head each, most first")

    @property
    def grid(self) -> Grid:
        """Token grid that the position table is made for."""
        side = self.size // self.patch
        return self.frames // self.tubelet, side, side

    def head_for(self, budget: float) -> int:
        """Return the head of the nearest budget; of two as near, that of the larger one."""
        gaps = [abs(own - budget) for own in self.budgets]
        return gaps.index(min(gaps))

    def build(
        self, num_classes: int, reducers: Sequence[base.Config] = (), seed: int = 0
    ) -> VideoTransformer:
        """Return a model with random weights.

        Args:
            num_classes: outputs of each head.
            reducers: the model's own chain; what they learn becomes part of the model.
            seed: of the weights.
        """
        generator = torch.Generator().manual_seed(seed)
        # Drawn apart, so that a host's weights do not depend on what reducers learn beside them.
        drawn = torch.Generator().manual_seed(seed)
        model = VideoTransformer(
            self.host(reducers),
            blocks=[self._block() for _ in range(self.depth)],
            embed=NormedEmbed(self.tubelet, self.patch, self.dim, RMS_EPS),
            positions=GlobalPositions(grid_code(self.grid, self.dim).float(), self.grid),
            pool=BudgetPool(len(self.budgets), self.dim, self.pool_heads, self.features),
            heads=[Head(self.features, num_classes) for _ in self.budgets],
            learned=learned_by(reducers, self.dim, self.grid, drawn),
            default=tuple(reducers),
            begin=ClassToken(self.dim),
            head_norm=nn.LayerNorm(self.features, NORM_EPS),
            config=self,
        )
        initialise(model, generator)
        return model

    def host(self, reducers: Sequence[base.Config] = ()) -> Host:
        """Return what reducers may know of a model that was built with some of them."""
        plain = Host(
            depth=self.depth,
            dim=self.dim,
            heads=self.heads,
            tubelet=self.tubelet,
            patch=self.patch,
            std=self.std,
            num_prefix=1,
        )
        learned = learned_by(reducers, self.dim, self.grid, torch.Generator())
        return replace(plain, learned=frozenset(learned))

    def _block(self) -> Block:
        dim, start = self.dim, self.layer_scale
        return Block(
            RMSNorm(dim, RMS_EPS),
            SkipAttention(dim, self.heads),
            RMSNorm(dim, RMS_EPS),
            Mlp(dim, int(dim * self.mlp_ratio)),
            scale1=LayerScale(dim, start) if start else None,
            scale2=LayerScale(dim, start) if start else None,
        )


class GlobalPositions(nn.Module):
    """A learned table on one grid, for any other one: mapped a channel, then interpolated."""

    def __init__(self, table_LD: Tensor, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(table_LD)
        self.scale = nn.Parameter(torch.ones(table_LD.shape[1]))
        self.shift = nn.Parameter(torch.zeros(table_LD.shape[1]))

    def on(self, grid: Grid) -> Tensor:
        """Return the table for a grid, (L, D)."""
        table_LD = self.table * self.scale + self.shift
        if grid == self.grid:
            return table_LD
        (before, rows, columns), (time, *frame) = self.grid, grid
        # Time first: a row of values for each channel and place of a frame.
        rows_RDT = table_LD.view(before, rows * columns, -1).permute(1, 2, 0)
        rows_RDT = F.interpolate(rows_RDT, size=time, mode="linear")
        frames_TDHW = rows_RDT.permute(2, 1, 0).reshape(time, -1, rows, columns)
        frames_TDHW = F.interpolate(frames_TDHW, size=frame, mode="bicubic")
        return frames_TDHW.flatten(2).transpose(1, 2).flatten(0, 1)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the row of each token's cell, (N, D)."""
        return rows_of(self.on(tokens.grid), tokens)


class SkipAttention(Attention):
    """Attention with normed queries and keys, and values that also go past it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, bias="none")
        self.q_norm, self.k_norm = RMSNorm(dim, RMS_EPS), RMSNorm(dim, RMS_EPS)
        self.skip_scale = nn.Parameter(torch.ones(dim))
        self.skip_shift = nn.Parameter(torch.zeros(dim))

    def project(self, x_ND: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each (N, A, E); norms are over all heads together."""
        q_NAE, k_NAE, v_NAE = super().project(x_ND)
        q_ND, k_ND = self.q_norm(q_NAE.flatten(1)), self.k_norm(k_NAE.flatten(1))
        return q_ND.view_as(q_NAE), k_ND.view_as(k_NAE), v_NAE

    def mix(self, out_ND: Tensor, v_ND: Tensor) -> Tensor:
        """Return the attended values and a share of a token's own."""
        return out_ND + (v_ND * self.skip_scale + self.skip_shift).to(out_ND.dtype)


class Projector(nn.Module):
    """One query a clip, its mean token, attends to the tokens of the clip."""

    def __init__(self, dim: int, heads: int, features: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(dim, NORM_EPS) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, features)

    def macs(self, n: int) -> int:
        """Return the cost of a sequence of `n` tokens."""
        dim = self.q.in_features
        return 2 * n * dim**2 + 2 * n * dim + dim**2 + dim * self.proj.out_features

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (B, F)."""
        x_ND, num_clips = tokens.x_ND, tokens.clips[-1] + 1
        one_N1 = torch.ones_like(x_ND[:, :1])
        mean_BD = sum_by_clip(x_ND, tokens) / sum_by_clip(one_N1, tokens)
        shape = (-1, self.heads, x_ND.shape[1] // self.heads)
        q_BAE = self.q(self.norm_q(mean_BD)).view(shape)
        k_NAE, v_NAE = self.k(self.norm_k(x_ND)).view(shape), self.v(self.norm_v(x_ND)).view(shape)
        if tokens.is_equal:
            k_BLAE, v_BLAE = (part.view(num_clips, -1, *shape[1:]) for part in (k_NAE, v_NAE))
            return self.proj(_attend_once(q_BAE, k_BLAE, v_BLAE))
        parts = (q_BAE.split(1), k_NAE.split(tokens.lengths), v_NAE.split(tokens.lengths))
        apart = [_attend_once(q, k[None], v[None]) for q, k, v in zip(*parts, strict=True)]
        return self.proj(torch.cat(apart))


def _attend_once(q_BAE: Tensor, k_BLAE: Tensor, v_BLAE: Tensor) -> Tensor:
    """Return what one query a clip finds, (B, D)."""
    k_BALE, v_BALE = k_BLAE.transpose(1, 2), v_BLAE.transpose(1, 2)
    return F.scaled_dot_product_attention(q_BAE[:, :, None], k_BALE, v_BALE).flatten(1)


class Aligner(nn.Module):
    """From the features of a small budget to those of the largest one, of length 1."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.norm = nn.LayerNorm(features, NORM_EPS)

    def forward(self, x_BF: Tensor) -> Tensor:
        return F.normalize(self.norm(self.linear(x_BF)), dim=-1)


class BudgetPool(Pool):
    """A projector for each budget; in training also what brings their features together."""

    def __init__(self, num_budgets: int, dim: int, heads: int, features: int) -> None:
        super().__init__()
        projectors = [Projector(dim, heads, features) for _ in range(num_budgets)]
        self.projectors = nn.ModuleList(projectors)
        self.aligners = nn.ModuleList(Aligner(features) for _ in projectors[1:])

    def macs(self, n: int) -> int:
        """Return the cost of a sequence of `n` tokens; that of the projectors is one."""
        projector = self.projectors[0]
        assert isinstance(projector, Projector)
        return projector.macs(n)

    def forward(self, tokens: Tokens, head: int = 0) -> Tensor:
        """Return the features of each clip (B, F), before the norm that all heads share."""
        return self.projectors[head](tokens)

    def aligned(self, pooled_BF: Tensor, head: int) -> Tensor:
        """Return pooled features of a head above 0 as the loss compares them with head 0's."""
        return self.aligners[head - 1](pooled_BF)


def initialise(model: VideoTransformer, generator: torch.Generator) -> None:
    """Draw the host's weights: Xavier for matrices, zero biases, a small class token."""
    for module in (part for name, part in model.named_modules() if not name.startswith("learned")):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        elif isinstance(module, nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1), generator=generator)
        elif isinstance(module, ClassToken):
            nn.init.normal_(module.token, std=0.02, generator=generator)
        if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
            nn.init.zeros_(module.bias)


_NAMES = (
    ("gpe_proj.depthwise_conv.weight", "positions.scale"),
    ("gpe_proj.depthwise_conv.bias", "positions.shift"),
    ("lpe.depthwise_conv.weight", "skip_scale"),
    ("lpe.depthwise_conv.bias", "skip_shift"),
    (".ls1.", ".scale1."),
    (".ls2.", ".scale2."),
    ("clip_projector.", "pool.projectors."),
    (".norm1_q.", ".norm_q."),
    (".norm1_k.", ".norm_k."),
    (".norm1_v.", ".norm_v."),
    (".cross_attn.q_bias", ".q.bias"),
    (".cross_attn.k_bias", ".k.bias"),
    (".cross_attn.v_bias", ".v.bias"),
    (".cross_attn.", "."),
    ("final_clip_decoder_for_projs.", "pool.aligners."),
    (".head.", ".linear."),  # of an aligner; those of the model have nothing before the name
    ("fc_norm.", "head_norm."),
)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an official checkpoint under our names, in our shapes."""
    state = dict(state)
    position_ND = state.pop("pos_embed")[0]
    ours = {
        "begin.token": state.pop("cls_token").flatten(),
        "begin.position": position_ND[0],
        "positions.table": position_ND[1:],
    }
    # Their pixels are in the order y, x, channel; ours are channel, y, x like those of `proj`.
    channels, _, *patch = state["patch_embed.proj.weight"].shape[1:]
    before = "patch_embed.norm_before.weight"
    state[before] = state[before].view(*patch, channels).permute(2, 0, 1).flatten()
    for name, weight in state.items():
        new = f"heads.{name.removeprefix('head.')}" if name.startswith("head.") else name
        for theirs, our in _NAMES:
            new = new.replace(theirs, our)
        is_factor = new.endswith(("scale", "shift"))
        ours[new] = weight.flatten() if is_factor else weight
    return ours
