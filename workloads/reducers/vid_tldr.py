"""vid-TLDR: in the first blocks, join similar tokens and let background count for nothing.

Choi et al., "vid-TLDR: Training Free Token merging for Light-weight Video Transformer", CVPR 2024,
arXiv 2403.13347. Written from a description of the method; the official code (mlvlab/vid-TLDR) was
only compared with, output by output.

    P = mean of the heads' softmax maps of this very layer, without mass;  rows are queries
    e_i = sum_j P_ij ln P_ij                    sharpness: the negative entropy of a query's row
    s_i = max(0, (e_i - mean e) / (max e - mean e))                 saliency, 0 = background
    A = even positions, B = odd positions; sim = cosine of the tokens themselves, after attention
    each a in A proposes its best b; the r most similar are merged (ties: lower position)
    m'_b = m_b + sum s_a m_a;   x'_b = (m_b x_b + sum s_a m_a x_a) / m'_b

Saliency decides what a *source* brings along, never which tokens merge or where: a background
source is dropped, its destination keeps its own full mass, and an unmerged background token
survives. The mass m goes on to every later block, which adds log(m) to its keys. The order left
behind is [unmerged A, B], each in its old order.

Deviations from the official code:
* 0 ln 0 = 0; a zero in the map makes a whole clip NaN there.
* Where all rows are equally sharp (up to rounding) s = 1 everywhere, which is plain merging; it is
  0 / 0 there.
* Similarity is taken in float32 and ties go to the lower position; the official half precision ties
  often, and then depends on the device.
* The class token is never a source: r stays below the number of even tokens. The official code has
  none; its copy in FluxViT merges it where r is half of an even number of tokens.
* Mass is a value that is handed on in float32, not a dictionary on the model that training with
  checkpointed gradients reads wrongly. Sums are not scaled by the greatest mass first: float32
  needs no such protection.
* `size` still counts the cells that went into a token, those of dropped sources included; it adds
  up to the grid, mass does not. A source trace is made where it is asked for, by
  `merging.contributions`.

Legend: S sequences, L tokens of one, K tokens left, R merged away, N packed, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from workloads.knobs import Float, Int
from workloads.merging import (
    Plan,
    free_schedule,
    merge_sum,
    merge_weighted,
    num_removed,
    propose,
    refuse_counts,
    take,
)
from workloads.mistakes import Mistake
from workloads.reducers.base import At, Host, Probe, Reducer, Seen, Step
from workloads.tokens import Grid, Layout, Tokens

REVISION = 1
ROUNDING = 1e-6  # of an entropy in float32, as a share of it


@dataclass(frozen=True, kw_only=True)
class Config:
    """A share of the tokens in the first blocks, or a number for each block."""

    ratio: Annotated[float, Float(0.05, 0.45)] = 0.25
    """Share of its tokens that each merging block removes, [0, 0.5]; 0 = off."""
    layers: Annotated[int, Int(1, 3)] = 2
    """Blocks that merge, from the first one."""
    counts: tuple[float, ...] = ()
    """A number a block in place of both: below 1 a share of its tokens. () = none; official ones:
    (600, 200, 100) of 2352 in a UMT-B."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 0.5:
            remedy = "it is the share removed, half at most can merge"
            raise Mistake(f"vid_tldr: ratio={self.ratio} must be in [0, 0.5]", remedy)
        if self.layers < 1:
            raise Mistake(f"vid_tldr: layers={self.layers} must be 1 or more", "ratio=0 is off")
        refuse_counts("vid_tldr", self.counts)

    @classmethod
    def off(cls) -> Config:
        """Return the exact identity."""
        return cls(ratio=0.0)

    @property
    def idle(self) -> tuple[str, ...]:
        """Knobs that mean nothing beside the others."""
        return ("ratio", "layers") if self.counts else ()

    def build(self, host: Host) -> SaliencyMerging:
        """Return the reducer; see `base.Config`."""
        return SaliencyMerging(self, host)

    def parameters(self, dim: int, grid: Grid, generator: Generator) -> nn.Module | None:
        """Return None: there is nothing to learn."""
        return None


def sharpness(map_SLL: Tensor) -> Tensor:
    """Return the negative entropy of each query's row, (S, L): 0 at most, larger is sharper."""
    # A clamp instead of xlogy, which takes twice as long: 0 times a finite number is 0 as well.
    tiny = torch.finfo(map_SLL.dtype).tiny
    return (map_SLL * map_SLL.clamp(min=tiny).log()).sum(dim=-1)


def saliency(sharp_SL: Tensor) -> Tensor:
    """Return how far each token is above the mean of its sequence, (S, L): 0 background, 1 most."""
    mean_S1 = sharp_SL.mean(dim=-1, keepdim=True)
    spread_S1 = sharp_SL.amax(dim=-1, keepdim=True) - mean_S1
    above_SL = ((sharp_SL - mean_S1) / spread_S1).clamp(min=0)
    return above_SL.masked_fill(spread_S1 <= ROUNDING * mean_S1.abs(), 1)


@torch.no_grad()
def match(x_SLD: Tensor, r: float, class_token: bool = False) -> Plan:
    """Match the r most similar pairs of tokens across the even / odd split.

    Args:
        x_SLD: tokens after attention; compared by cosine, in float32.
        r: pairs to merge, or their share of the tokens if below 1; at most half of the unprotected.
        class_token: position 0 may not be merged and stays first.
    """
    num = x_SLD.shape[1]
    order_SA, partner_SA = propose(x_SLD, class_token)
    r = num_removed(num, r, class_token)
    merged_SR = order_SA[:, :r].sort(dim=-1).values
    unmerged_SU = order_SA[:, r:].sort(dim=-1).values
    odd_SB = torch.arange(1, num, 2, device=x_SLD.device).expand(len(x_SLD), -1)
    into_SR = partner_SA.gather(-1, merged_SR) + unmerged_SU.shape[1]
    return Plan(torch.cat([2 * unmerged_SU, odd_SB], dim=1), 2 * merged_SR, into_SR)


def share(map_SLL: Tensor, plan: Plan) -> Tensor:
    """Return the part of its mass that each source brings along, (S, R, 1)."""
    return take(saliency(sharpness(map_SLL))[..., None], plan.source_SR)


class SaliencyMerging(Reducer):
    """vid-TLDR inside a model: between attention and MLP of the blocks that its schedule names."""

    def __init__(self, config: Config, host: Host) -> None:
        asked = config.counts or (config.ratio,) * config.layers
        self.config, self.host = config, host
        self.asked = free_schedule("vid_tldr", asked, host.depth)

    def steps(self) -> tuple[Step, ...]:
        layers = (layer for layer, asked in enumerate(self.asked) if asked > 0)
        return tuple(Step(At.IN_BLOCK, i, needs=Layout.EQUAL, gives=Layout.EQUAL) for i in layers)

    def probe(self, layer: int) -> Probe | None:
        return "map" if self.asked[layer] > 0 else None

    def in_block(self, tokens: Tokens, seen: Seen, layer: int) -> Tokens:
        assert seen.map_SLL is not None, "it was asked for"
        class_token = tokens.num_prefix > 0
        if not num_removed(tokens.lengths[0], self.asked[layer], class_token):
            return tokens
        x_SLD = tokens.per_sequence(tokens.x_ND)
        plan = match(x_SLD, self.asked[layer], class_token)
        mass_N = torch.ones_like(tokens.size_N) if tokens.mass_N is None else tokens.mass_N
        x_SKD, mass_SK1 = merge_weighted(
            x_SLD, tokens.per_sequence(mass_N)[..., None], plan, share(seen.map_SLL, plan)
        )
        coord_SK3 = take(tokens.per_sequence(tokens.coord_N3), plan.kept_SK)
        return tokens.replace(
            x_ND=x_SKD.flatten(0, 1).to(tokens.x_ND.dtype),
            coord_N3=coord_SK3.flatten(0, 1),
            size_N=merge_sum(tokens.per_sequence(tokens.size_N)[..., None], plan).flatten(),
            mass_N=mass_SK1.flatten(),
            lengths=(x_SKD.shape[1],) * len(tokens.lengths),
            layout=Layout.EQUAL,
        )

    def macs(self, at: At, num_tokens: int) -> int:
        """The product of the even with the odd tokens, over their whole width."""
        return (num_tokens + 1) // 2 * (num_tokens // 2) * self.host.dim
