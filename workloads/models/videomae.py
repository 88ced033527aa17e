"""VideoMAE's host: joint space-time attention over tubelets, fixed positions, no class token.

Tong et al., "VideoMAE", NeurIPS 2022, arXiv 2203.12602. Random weights; `SIZES` are the paper's.

Small models trained from nothing need two choices that large ones do without, so both are fields:
`pool="attention"` (a mean over 200 tokens hides a few moving ones) and `embed_init="difference"`
(half of the channels begin as the change between the frames of a tubelet, which is what motion
looks like).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from workloads.blocks import Attention, Block, Mlp
from workloads.mistakes import Mistake
from workloads.models import learned_by
from workloads.parts import (
    AttentionPool,
    FirstPool,
    Head,
    MeanPool,
    PatchEmbed,
    Pool,
    Positions,
    sincos_1d,
    sincos_3d,
)
from workloads.reducers import base
from workloads.reducers.base import Host
from workloads.tokens import Grid
from workloads.vit import VideoTransformer

REVISION = 2
SIZES: dict[str, dict[str, Any]] = {  # Any: fields of a Config
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "huge": {"dim": 1280, "depth": 32, "heads": 16},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and initialisation of a VideoMAE host."""

    dim: int = 384
    """Width of a token."""
    depth: int = 12
    """Blocks."""
    heads: int = 6
    """Attention heads; they share the width."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP / width."""
    tubelet: int = 2
    """Frames of a token."""
    patch: int = 16
    """Spatial side of a token, pixels."""
    frames: int = 16
    """Frames of a training clip: the grid that positions are made for."""
    size: int = 224
    """Side of a training clip, pixels."""
    pool: Literal["mean", "size_mean", "first", "attention"] = "mean"
    """How tokens become a clip; `size_mean` weighs by cells (ToMe for MAE), `first` takes the first
    token, as transformers does with `use_mean_pooling=False`."""
    positions: Literal["flat", "separable"] = "flat"
    """Sin-cos over the flat index (VideoMAE), or a share of the channels for each axis."""
    embed_init: Literal["xavier", "difference"] = "xavier"
    """`difference`: half of the channels start as the change within a tubelet."""
    norm_eps: float = 1e-6
    """LayerNorm epsilon; VideoMAE 1e-6, the official RLT code 1e-5."""
    pool_eps: float = 0.0
    """That of the norm in the pool, 0 = as the others; transformers has 1e-5 behind a mean."""
    qv_bias: bool = True
    """Whether queries and values have a bias; keys never have one."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Pixel mean in 0..1 units."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Pixel standard deviation in 0..1 units."""

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise Mistake(f"model: dim={self.dim} must be a multiple of heads={self.heads}")
        if self.embed_init == "difference" and self.tubelet != 2:
            raise Mistake(
                f"model: embed_init='difference' needs tubelet=2, not {self.tubelet}",
                "use embed_init='xavier'",
            )

    @property
    def grid(self) -> Grid:
        """Token grid of a training clip."""
        side = self.size // self.patch
        return self.frames // self.tubelet, side, side

    def build(
        self, num_classes: int, reducers: Sequence[base.Config] = (), seed: int = 0
    ) -> VideoTransformer:
        """Return a model with random weights.

        Args:
            num_classes: outputs of the head.
            reducers: the model's own chain; what they learn becomes part of the model.
            seed: of the weights.
        """
        generator = torch.Generator().manual_seed(seed)
        # Drawn apart, so that a host's weights do not depend on what reducers learn beside them.
        apart = torch.Generator().manual_seed(seed)
        learned = learned_by(reducers, self.dim, self.grid, apart)
        model = VideoTransformer(
            self.host(reducers),
            blocks=[self._block() for _ in range(self.depth)],
            embed=PatchEmbed(self.tubelet, self.patch, self.dim),
            positions=Positions(self._table(), self.grid),
            pool=self._pool(),
            heads=[Head(self.dim, num_classes)],
            learned=learned,
            default=tuple(reducers),
            config=self,
        )
        initialise(model, generator)
        if self.embed_init == "difference":
            start_as_difference(model.patch_embed.proj, generator)
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
        )
        learned = learned_by(reducers, self.dim, self.grid, torch.Generator())
        return replace(plain, learned=frozenset(learned))

    def _block(self) -> Block:
        dim = self.dim
        return Block(
            nn.LayerNorm(dim, self.norm_eps),
            Attention(dim, self.heads, bias="qv" if self.qv_bias else "none"),
            nn.LayerNorm(dim, self.norm_eps),
            Mlp(dim, int(dim * self.mlp_ratio)),
        )

    def _table(self) -> torch.Tensor:
        if self.positions == "separable":
            return sincos_3d(self.grid, self.dim)
        return sincos_1d(self.grid[0] * self.grid[1] * self.grid[2], self.dim)

    def _pool(self) -> Pool:
        eps = self.pool_eps or self.norm_eps
        if self.pool == "attention":
            return AttentionPool(self.dim, eps)
        if self.pool == "first":
            return FirstPool(self.dim, eps)
        return MeanPool(self.dim, eps, by_size=self.pool == "size_mean")


def initialise(model: VideoTransformer, generator: torch.Generator) -> None:
    """Draw the host's weights (not what reducers learn): Xavier for matrices, zero biases."""
    parts = nn.ModuleList([model.patch_embed, model.blocks, model.pool, model.heads])
    for module in parts.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        elif isinstance(module, nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1), generator=generator)
        if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def start_as_difference(embed: nn.Conv3d, generator: torch.Generator) -> None:
    """Set half of the channels to the mean of the frames of a tubelet, half to the difference."""
    half, fan_in = embed.out_channels // 2, embed.weight[0, :, 0].numel()
    shape = embed.weight[:half, :, 0].shape
    still = torch.empty(shape).normal_(std=0.5 * fan_in**-0.5, generator=generator)
    moving = torch.empty(embed.weight[half:, :, 0].shape)
    moving.normal_(std=6 * fan_in**-0.5, generator=generator)
    with torch.no_grad():
        embed.weight[:half] = still[:, :, None]
        embed.weight[half:, :, 0], embed.weight[half:, :, 1] = -moving, moving
