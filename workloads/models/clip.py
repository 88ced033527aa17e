"""CLIP's image encoder as a host: attention within each frame, and adapters that learn from video.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
arXiv 2103.00020. Adapters: Yang et al., "AIM: Adapting Image Models for Efficient Video Action
Recognition", ICLR 2023, arXiv 2302.03024 (taoyang1122/adapt-image-models).

    a block             x += MSA(LN1 x);  x += MLP(LN2 x)                        over a frame
    with adapters       x += T(MSA over time(LN1 x))                             "space_time" alone
                        x += h + S(h), h = MSA(LN1 x)                            same frozen MSA
                        x += MLP(LN2 x) + 0.5 M(LN2 x)
    an adapter          fc2(GELU(fc1 x)), a quarter of the width, fc2 begins at zero
    the head            mean over the frames of the normed class token

So a model with new adapters is the image model, frame by frame, to the last bit but for the class
tokens' mean; one frame alone is the image model. Random weights; `SIZES` are the published ones.

Deviations from AIM's code:
* The frames of a clip are read off the tokens in each block, never fixed, so that blocks behind a
  halving group the frames of one clip and not of two.
* The temporal embedding is there with the temporal branch alone; without it nothing in a frame can
  depend on when it is. Clips of other lengths interpolate it.
* Tokens that were dropped or merged attend over time among what is left at their place.

Legend: N packed tokens, S sequences (frames), B clips, D width, P class tokens, T frames, L places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workloads.blocks import Attention, Block, Mlp, reduce
from workloads.mistakes import Mistake
from workloads.models import learned_by
from workloads.parts import Head, PatchEmbed, Pool, frame_code
from workloads.reducers import base
from workloads.reducers.base import Chain, Host
from workloads.tokens import Grid, Tokens, by_place, offsets, with_prefix
from workloads.trace import Trace
from workloads.vit import VideoTransformer

REVISION = 1
SIZES: dict[str, dict[str, Any]] = {  # Any: fields of a Config
    "base16": {"dim": 768, "depth": 12, "heads": 12, "patch": 16},
    "large14": {"dim": 1024, "depth": 24, "heads": 16, "patch": 14},
}
MLP_ADAPTER_SCALE = 0.5
BOTTLENECK = 4  # width / hidden width of an adapter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of a CLIP host; the defaults are CLIP ViT-B/16 without adapters."""

    dim: int = 768
    """Width of a token."""
    depth: int = 12
    """Blocks."""
    heads: int = 12
    """Attention heads; they share the width."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP / width."""
    patch: int = 16
    """Spatial side of a token, pixels."""
    frames: int = 8
    """Frames of a training clip; 1 = an image."""
    size: int = 224
    """Side of a training clip, pixels: the places that positions are learned for."""
    adapters: Literal["none", "space", "space_time"] = "none"
    """None, beside attention and MLP, or over time too."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Of the MLP: CLIP's x sigmoid(1.702 x), or the exact one."""
    first_norm: bool = True
    """Whether a norm stands before the first block (CLIP)."""
    position_init: Literal["normal", "sines"] = "normal"
    """How learned positions begin: CLIP's small noise, or sines, by which small models trained from
    nothing find places sooner."""
    embed_bias: bool = False
    """Whether the embedding of patches has a bias (not in CLIP)."""
    norm_eps: float = 1e-5
    """LayerNorm epsilon; CLIP 1e-5, timm 1e-6."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Pixel mean in 0..1 units."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Pixel standard deviation in 0..1 units."""

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise Mistake(f"model: dim={self.dim} must be a multiple of heads={self.heads}")
        choices = {
            "adapters": ADAPTERS,
            "activation": (*ACTIVATIONS,),
            "position_init": ("normal", "sines"),
        }
        for field, known in choices.items():
            if (value := getattr(self, field)) not in known:
                raise Mistake(f"model: {field}={value!r}", f"one of {', '.join(known)}")
        if self.position_init == "sines" and self.dim % 4:
            raise Mistake(f"model: dim={self.dim} must be a multiple of 4 for sines")

    @property
    def tubelet(self) -> int:
        """One: each frame is a picture."""
        return 1

    @property
    def grid(self) -> Grid:
        """Token grid of a training clip."""
        return self.frames, self.size // self.patch, self.size // self.patch

    def build(
        self, num_classes: int, reducers: Sequence[base.Config] = (), seed: int = 0
    ) -> VideoTransformer:
        """Return a model with random weights; see `HostConfig`."""
        generator = torch.Generator().manual_seed(seed)
        # Drawn apart, so that a host's weights do not depend on what reducers learn beside them.
        apart = torch.Generator().manual_seed(seed)
        learned = learned_by(reducers, self.dim, self.grid, apart)
        over_time = self.adapters == "space_time"
        model = VideoTransformer(
            self.host(reducers),
            blocks=[self._block() for _ in range(self.depth)],
            embed=PatchEmbed(1, self.patch, self.dim, bias=self.embed_bias),
            positions=Positions(self.grid, self.dim),
            pool=ClassPool(self.dim, self.norm_eps),
            heads=[Head(self.dim, num_classes)],
            learned=learned,
            default=tuple(reducers),
            begin=Begin(self.dim, self._norm(), self.frames if over_time else 0),
            config=self,
        )
        initialise(model, generator)
        if self.position_init == "sines":
            table_LD = frame_code(*self.grid[1:], self.dim)
            model.positions.get_parameter("table").data.copy_(table_LD)
        return model

    def host(self, reducers: Sequence[base.Config] = ()) -> Host:
        """Return what reducers may know of a model that was built with some of them."""
        plain = Host(
            depth=self.depth,
            dim=self.dim,
            heads=self.heads,
            tubelet=1,
            patch=self.patch,
            std=self.std,
            num_prefix=1,
            per_frame=True,
        )
        return replace(
            plain, learned=frozenset(learned_by(reducers, self.dim, self.grid, torch.Generator()))
        )

    def _norm(self) -> nn.Module:
        return nn.LayerNorm(self.dim, self.norm_eps) if self.first_norm else nn.Identity()

    def _block(self) -> Block:
        dim = self.dim
        norm1, norm2 = (nn.LayerNorm(dim, self.norm_eps) for _ in range(2))
        attn = Attention(dim, self.heads, bias="qkv")
        mlp = Mlp(dim, int(dim * self.mlp_ratio), ACTIVATIONS[self.activation]())
        if self.adapters == "none":
            return Block(norm1, attn, norm2, mlp)
        return AdaptedBlock(norm1, attn, norm2, mlp, over_time=self.adapters == "space_time")


class QuickGelu(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x_ND: Tensor) -> Tensor:
        return x_ND * torch.sigmoid(1.702 * x_ND)


ADAPTERS = ("none", "space", "space_time")
ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGelu, "gelu": nn.GELU}


class AdaptedBlock(Block):
    """A block with AIM's adapters; what begins with `adapter` is trained, the rest is the image's.

    Args:
        norm1, attn, norm2, mlp: as in a plain block.
        over_time: whether attention runs over time too, before that over space.
    """

    def __init__(
        self, norm1: nn.Module, attn: Attention, norm2: nn.Module, mlp: Mlp, over_time: bool
    ) -> None:
        super().__init__(norm1, attn, norm2, mlp)
        dim = attn.qkv.in_features
        self.adapter_space, self.adapter_mlp = (Mlp(dim, dim // BOTTLENECK) for _ in range(2))
        self.adapter_time = Mlp(dim, dim // BOTTLENECK) if over_time else None

    def forward(self, tokens: Tokens, chain: Chain, layer: int, trace: Trace) -> Tokens:
        if self.adapter_time is not None:
            tokens = self.over_time(tokens, self.adapter_time, layer, trace)
        tokens = self.attended(tokens, chain, layer, trace)
        trace.add("mlp", tokens, self.mlp.macs, layer)
        trace.add("adapt", tokens, self.adapter_mlp.macs, layer)
        x_ND = self.norm2(tokens.x_ND)
        added_ND = self.mlp(x_ND) + MLP_ADAPTER_SCALE * self.adapter_mlp(x_ND)
        return tokens.replace(x_ND=tokens.x_ND + added_ND)

    def over_time(self, tokens: Tokens, adapter: Mlp, layer: int, trace: Trace) -> Tokens:
        """Return tokens after the attention of each place over the frames of its clip."""
        places, order_N = by_place(tokens)
        trace.add("adapt", places, self.attn.macs, layer)
        trace.add("adapt", places, adapter.macs, layer)
        out_ND = adapter(self.attn(self.norm1(places.x_ND), places, None)[0])
        # Back to where each token was.
        return tokens.replace(x_ND=tokens.x_ND.index_add(0, order_N, out_ND.to(tokens.x_ND.dtype)))

    def attended(self, tokens: Tokens, chain: Chain, layer: int, trace: Trace) -> Tokens:
        """Return tokens after attention within a frame and the reducers that act behind it."""
        trace.add("attention", tokens, self.attn.macs, layer)
        trace.add("adapt", tokens, self.adapter_space.macs, layer)
        out_ND, seen = self.attn(self.norm1(tokens.x_ND), tokens, chain.probe(layer))
        x_ND = tokens.x_ND + out_ND + self.adapter_space(out_ND)
        return reduce(tokens.replace(x_ND=x_ND), seen, chain, layer, trace)


class Positions(nn.Module):
    """A learned row for each place of a frame, interpolated to another number of places."""

    def __init__(self, grid: Grid, dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros(grid[1] * grid[2], dim))

    def on(self, grid: Grid) -> Tensor:
        """Return the table for the frames of a grid, (L, D)."""
        if grid[1:] == self.grid[1:]:
            return self.table
        table_1DHW = self.table.view(*self.grid[1:], -1).permute(2, 0, 1)[None]
        other = F.interpolate(table_1DHW, size=grid[1:], mode="bicubic", align_corners=False)
        return other[0].flatten(1).T

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the row of each token's place, (N, D)."""
        _, y_N, x_N = tokens.coord_N3.unbind(dim=1)
        return self.on(tokens.grid)[y_N * tokens.grid[2] + x_N]


class Begin(nn.Module):
    """From the tokens of frames to what enters the first block: class tokens, times, a norm."""

    def __init__(self, dim: int, norm: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, dim))
        self.position = nn.Parameter(torch.zeros(1, dim))  # of the class token
        self.time = nn.Parameter(torch.zeros(num_frames, dim)) if num_frames else None
        self.norm = norm

    def forward(self, tokens: Tokens) -> Tokens:
        tokens = with_prefix(tokens, self.class_token + self.position)
        x_ND = tokens.x_ND if self.time is None else tokens.x_ND + self.times(self.time, tokens)
        return tokens.replace(x_ND=self.norm(x_ND))

    def times(self, table_TD: Tensor, tokens: Tokens) -> Tensor:
        """Return the row of each token's frame, (N, D); class tokens are of a frame too."""
        num, device = tokens.grid[0], table_TD.device
        if num != len(table_TD):
            table_TD = F.interpolate(table_TD.T[None], size=num, mode="linear")[0].T
        frame_S = torch.arange(len(tokens.lengths), device=device) % num
        lengths_S = torch.tensor(tokens.lengths, device=device)
        frame_N = frame_S.repeat_interleave(lengths_S, output_size=len(tokens.x_ND))
        return table_TD[frame_N].to(tokens.x_ND.dtype)


class ClassPool(Pool):
    """The class token of each frame, normed, and their mean over the frames of a clip."""

    def __init__(self, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, norm_eps)

    def macs(self, n: int) -> int:
        """Return the cost of a frame: one token is looked at."""
        return self.norm.weight.numel()

    def forward(self, tokens: Tokens, head: int = 0) -> Tensor:
        if tokens.is_equal:
            first_SD = tokens.per_sequence(tokens.x_ND)[:, 0]
        else:
            first_S = torch.tensor(offsets(tokens.lengths)[:-1], device=tokens.x_ND.device)
            first_SD = tokens.x_ND[first_S]
        # As many frames of each clip, whatever is left in them.
        return self.norm(first_SD).unflatten(0, (tokens.clips[-1] + 1, -1)).mean(dim=1)


def initialise(model: VideoTransformer, generator: torch.Generator) -> None:
    """Draw the host's weights (not what reducers learn): Xavier for matrices, CLIP's scale for
    tokens, zero for biases and for whatever must not change the image model at first.
    """
    for name, parameter in model.named_parameters():
        if name.startswith("learned.") or "norm" in name:
            continue
        if name in ("begin.class_token", "begin.position", "positions.table"):
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
        elif parameter.dim() > 1 and not name.endswith(LAST):
            nn.init.xavier_uniform_(parameter.data.flatten(1), generator=generator)
        else:
            nn.init.zeros_(parameter)


LAST = ("begin.time", *(f"adapter_{part}.fc2.weight" for part in ("space", "mlp", "time")))
"""What begins at zero."""
