"""InTI-style interpolation: between two blocks, make one frame out of each two neighbouring ones.

Zhang et al., "Dynamic and Compressive Adaptation of Transformers From Images to Videos", ECCV 2024,
arXiv 2408.06840. There is no official code and the paper's equations were not at hand: that two
tokens at one place of neighbouring frames are mixed, with softmax weights from a network that sees
several scales, is the paper's; *the structure of that network g is ours*, hence "InTI-style".

    pairs of frames (2i, 2i+1), for each place m:   (a, b) = softmax(g(X, X'))     a + b = 1
    Y = X + b (X' - X)                              X' = the later frame at that place
    g:  u = W LN(x), C -> C/8, of both;  c = [u; u']
        point W c  +  local W (3x3 depth-wise conv of c)  +  global W (mean of c over places)
        -> GELU -> two logits (begin at zero: training starts at the plain mean of the pair)

`halve_after=(3,)` halves the frames after three blocks: blocks 0, 1, 2 see T, the others T/2. With
attention per frame that saves 37.5 % of 12 blocks. Two equal entries are two modules in a row.

Choices that the paper may have made otherwise:
* The weighted sum is written as a difference, so equal frames pass through bit for bit.
* A class token lies on no grid: its local term is zero.
* The weights are ordered, so g knows which frame is the later one.
* `weights="mean"` and `"first"` (drop every second frame there) are the controls: same cost, no g.

Invariants: places and spatial positions stay; each token stands for twice as many cells.

Legend: B clips, T frames, F pairs of them, M tokens of a frame (P class tokens among them), L its
places, D width, E width of g (D / 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from workloads.knobs import Choice
from workloads.mistakes import Mistake
from workloads.reducers.base import At, Host, Reducer, Step
from workloads.tokens import Grid, Layout, Tokens, frame_pairs, with_half_the_frames

REVISION = 1
SCALES = ("point", "local", "global")
WEIGHTS = ("softmax", "mean", "first")
SHRINK = 8  # width / width of g
PLACES = Choice(((1,), (2,), (3,), (6,), (1, 1), (1, 2), (6, 6), (4, 8)), stage="finetune")
LOOKS = Choice((SCALES[:1], SCALES[:2], SCALES), stage="finetune")


@dataclass(frozen=True, kw_only=True)
class Config:
    """After which blocks the frames are halved, and what weighs them."""

    halve_after: Annotated[tuple[int, ...], PLACES] = (3,)
    """Blocks that are done before each halving, rising; () = off."""
    weights: Annotated[
        Literal["softmax", "mean", "first"], Choice(("softmax", "mean", "first"), stage="finetune")
    ] = "softmax"
    """Learned, or a control: the mean of a pair, or its first frame."""
    scales: Annotated[tuple[str, ...], LOOKS] = SCALES
    """What the learned weights look at: the place, its neighbours, the whole frame."""

    def __post_init__(self) -> None:
        after = self.halve_after
        if not all(isinstance(n, int) and n > 0 for n in after) or list(after) != sorted(after):
            raise Mistake(f"inti: halve_after={after} must be rising numbers of blocks, 1 or more")
        if self.weights not in WEIGHTS:
            raise Mistake(f"inti: weights={self.weights!r}", f"one of {', '.join(WEIGHTS)}")
        if not self.scales or not {*self.scales} <= {*SCALES}:
            what = f"inti: scales={self.scales} must be one or more of {', '.join(SCALES)}"
            raise Mistake(what, 'weights="mean" has no network')

    @classmethod
    def off(cls) -> Config:
        """Return the exact identity."""
        return cls(halve_after=())

    def build(self, host: Host) -> Interpolation:
        """Return the reducer; see `base.Config`."""
        if any(block > host.depth for block in self.halve_after):
            what = f"inti: halve_after={self.halve_after}, but the model has {host.depth} blocks"
            raise Mistake(what, f"a quarter of them is {max(host.depth // 4, 1)}")
        if self.halve_after and host.num_prefix and not host.per_frame:
            what = "inti: a class token of the whole clip belongs to no frame"
            raise Mistake(what, "use a host with attention per frame, or without class tokens")
        if self.halve_after and self.weights == "softmax" and "inti" not in host.learned:
            what = "inti: weights='softmax', but this model has no networks for them"
            raise Mistake(what, "train with it (finetune.reducers), or evaluate weights='mean'")
        return Interpolation(self, host)

    def parameters(self, dim: int, grid: Grid, generator: Generator) -> nn.Module | None:
        """Return a network for each halving, if weights are learned."""
        if self.weights != "softmax" or not self.halve_after:
            return None
        return nn.ModuleList([Weigher(dim, self.scales, generator) for _ in self.halve_after])


class Weigher(nn.Module):
    """The network g: how much each token of a pair of frames counts."""

    def __init__(self, dim: int, scales: tuple[str, ...], generator: Generator) -> None:
        super().__init__()
        width = max(dim // SHRINK, 1)
        self.norm = nn.LayerNorm(dim)
        self.shrink = nn.Linear(dim, width)
        if "local" in scales:
            self.near = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.scales = nn.ModuleDict({s: nn.Linear(2 * width, width) for s in scales})
        self.last = nn.Linear(width, 2)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.last.weight)  # the last one alone: two in a row would never learn

    def forward(self, x_BFMD: Tensor, later_BFMD: Tensor, num_prefix: int, grid: Grid) -> Tensor:
        """Return the logits of the first and the second frame of each pair, (B, F, M, 2)."""
        pair_BFMC = torch.cat([self.shrink(self.norm(x)) for x in (x_BFMD, later_BFMD)], dim=-1)
        places_BFLC = pair_BFMC[:, :, num_prefix:]
        total_BFME = torch.zeros_like(pair_BFMC[..., : self.last.in_features])
        for name, project in self.scales.items():
            if name == "point":
                total_BFME = total_BFME + project(pair_BFMC)
            elif name == "global":
                total_BFME = total_BFME + project(places_BFLC.mean(dim=2, keepdim=True))
            else:
                term_BFLE = project(self.nearby(places_BFLC, grid))
                total_BFME = total_BFME + F.pad(term_BFLE, (0, 0, num_prefix, 0))
        logits_BFM2: Tensor = self.last(F.gelu(total_BFME))
        return logits_BFM2

    def nearby(self, places_BFLC: Tensor, grid: Grid) -> Tensor:
        """Return the convolution over the places of a frame, of the same shape."""
        image_XCHW = places_BFLC.flatten(0, 1).mT.unflatten(2, grid[1:])
        return self.near(image_XCHW).flatten(2).mT.view_as(places_BFLC)


def interpolate(x_BFMD: Tensor, later_BFMD: Tensor, logits_BFM2: Tensor) -> Tensor:
    """Mix the two frames of each pair by the softmax of their logits, (B, F, M, D)."""
    later_BFM1 = logits_BFM2.float().softmax(dim=-1)[..., 1:].to(x_BFMD.dtype)
    return x_BFMD + later_BFM1 * (later_BFMD - x_BFMD)


class Interpolation(Reducer):
    """InTI inside a model: after some blocks there are half as many frames."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self.host = config, host

    def steps(self) -> tuple[Step, ...]:
        after = sorted({*self.config.halve_after})
        return tuple(Step(At.AFTER_BLOCK, n - 1, Layout.GRID, Layout.GRID) for n in after)

    def check(self, grid: Grid) -> None:
        times = len(self.config.halve_after)
        if grid[0] % 2**times:
            what = f"inti: {grid[0]} frames (or tubelets) cannot be halved {times} times"
            raise Mistake(what, f"choose a multiple of {2**times}, or fewer halvings")

    def accept(self, learned: nn.Module | None) -> None:
        after, scales = self.config.halve_after, {*self.config.scales}
        nets = [net for net in learned.modules() if isinstance(net, Weigher)] if learned else []
        unfit = len(nets) < len(after) or any({*net.scales} != scales for net in nets)
        if after and self.config.weights == "softmax" and unfit:
            what = f"inti: halve_after={after}, scales={self.config.scales} are not what this model"
            raise Mistake(f"{what} was trained with", "evaluate with the same Config (same_as)")

    def after_block(self, tokens: Tokens, layer: int, learned: nn.Module | None) -> Tokens:
        for place, done in enumerate(self.config.halve_after):
            if done == layer + 1:
                tokens = self.halve(tokens, place, learned)
        return tokens

    def halve(self, tokens: Tokens, place: int, learned: nn.Module | None) -> Tokens:
        """Return tokens with half as many frames; `place` is the halving, from 0."""
        first, later = frame_pairs(tokens.x_ND, tokens)
        if self.config.weights == "first":
            return with_half_the_frames(tokens, first, is_merge=False)
        if self.config.weights == "mean":
            return with_half_the_frames(tokens, first + 0.5 * (later - first))
        assert isinstance(learned, nn.ModuleList), "see `accept`"
        logits_BFM2 = learned[place](first, later, tokens.num_prefix, tokens.grid)
        return with_half_the_frames(tokens, interpolate(first, later, logits_BFM2))

    def macs(self, at: At, num_tokens: int) -> int:
        """The products of g, half a pair a token; the global one is counted at each place.

        Of modules in a row each looks at half as many tokens as the one before. Where only some
        places have several, all are counted like those: too much by less than g itself.
        """
        if self.config.weights != "softmax":
            return 0
        after, width = self.config.halve_after, max(self.host.dim // SHRINK, 1)
        kernel = 9 if "local" in self.config.scales else 0
        of_token = width * (self.host.dim + len(self.config.scales) * width + kernel + 1)
        in_a_row = max(after.count(block) for block in after)
        return num_tokens * of_token * (2**in_a_row - 1) // 2 ** (in_a_row - 1)
