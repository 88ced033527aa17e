"""Token merging (ToMe): in each block, join the most similar tokens and let them count for more.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461. Written from the
paper; the official code (facebookresearch/ToMe) is CC-BY-NC and was only compared with, output by
output.

    A = even positions, B = odd positions; sim = cosine of the mean key of the heads
    each a in A proposes its best b; the r most similar proposals are merged (ties: lower position)
    x <- sum(size x) / sum(size), size <- sum(size);  later blocks add log(size) to their keys

Merging happens between attention and MLP. The order left behind is [unmerged A by falling
similarity, B]; with a class token unmerged A stays in order, so that it remains first.

Deviations from the official code:
* The r of each block is computed, not popped from a shared list that must be rebuilt each forward.
* A key of length zero counts as similar to nothing; the official division by its norm gives NaN.
* Unmerging knows where a distillation token was moved; the official code forgets it and hands rows
  to the wrong tokens (`merging.unmerge(official_order=True)` reproduces that for comparison).
* Fused attention with a log-size bias instead of an explicit map: same numbers, less time.
* `schedule="increasing"` etc. name the inflections -1, 0, 1; a block count of 1 does not divide by
  zero. `ratio` with `layers`, and `counts`, are the schedules of vid-TLDR, to compare the two.
The RLT repository's video baseline is this method with `r=65`, `proportional=True` and a mean pool
that does not weigh by size; ToMe's own MAE variant weighs by size (`pool="size_mean"` of the host).

Legend: S sequences, L tokens of one, K tokens left, R merged, E width of the metric, N packed, D
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor, nn

from workloads.knobs import Choice, Float, Int
from workloads.merging import (
    Plan,
    free_schedule,
    merge_weighted,
    num_removed,
    propose,
    refuse_counts,
    take,
)
from workloads.mistakes import Mistake
from workloads.reducers.base import At, Host, Probe, Reducer, Seen, Step
from workloads.tokens import Grid, Layout, Tokens

REVISION = 3
INFLECTION = {"constant": 0.0, "decreasing": -1.0, "increasing": 1.0}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Token merging with one r and the shape of its schedule, or with a share in the first blocks.

    `counts` goes before `ratio`, `ratio` before `r`."""

    r: Annotated[int, Int(1, 64)] = 16
    """Tokens merged in a block, on average; never more than half of them. 0 = off."""
    schedule: Annotated[
        Literal["constant", "decreasing", "increasing"],
        Choice(("constant", "decreasing", "increasing")),
    ] = "constant"
    """How r changes over the blocks: alike, from 2r to 0, or from 0 to 2r."""
    proportional: bool = True
    """Attention adds log(size): on for supervised models, off for MAE models used as they are."""
    ratio: Annotated[float, Float(0, 0.45)] = 0.0
    """Share of its tokens that each of the first `layers` blocks merges; 0 = r tokens in each."""
    layers: Annotated[int, Int(1, 3)] = 2
    """Blocks that merge by `ratio`."""
    counts: tuple[float, ...] = ()
    """A number a block, from the first one: below 1 a share of its tokens. () = by the others."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 0.5:
            raise Mistake(f"tome: ratio={self.ratio} must be in [0, 0.5]", "half at most can merge")
        if self.layers < 1:
            raise Mistake(f"tome: layers={self.layers} must be 1 or more", "ratio=0 is none")
        refuse_counts("tome", self.counts)
        if self.r < 0:
            raise Mistake(f"tome: r={self.r} must be 0 or more", "it is a number of tokens a block")
        if self.schedule not in INFLECTION:
            raise Mistake(f"tome: schedule={self.schedule!r}", f"one of {', '.join(INFLECTION)}")

    @classmethod
    def off(cls) -> Config:
        """Return the exact identity."""
        return cls(r=0)

    @property
    def idle(self) -> tuple[str, ...]:
        """Knobs that mean nothing beside the others."""
        if self.counts:
            return ("r", "schedule", "ratio", "layers")
        return ("r", "schedule") if self.ratio else ("ratio", "layers")

    def asked(self, depth: int) -> tuple[float, ...]:
        """Return what each block of a model is to merge: a share if below 1, else a number."""
        if self.counts or self.ratio:
            return free_schedule("tome", self.counts or (self.ratio,) * self.layers, depth)
        return schedule(depth, self.r, INFLECTION[self.schedule])

    def build(self, host: Host) -> TokenMerging:
        """Return the reducer; see `base.Config`."""
        return TokenMerging(self, host)

    def parameters(self, dim: int, grid: Grid, generator: Generator) -> nn.Module | None:
        """Return None: there is nothing to learn."""
        return None


def schedule(num_layers: int, r: int, inflection: float) -> tuple[int, ...]:
    """Return the r of each block: a line from r(1 - f) to r(1 + f), f the inflection, truncated."""
    low = int(r * (1 - inflection))
    step = (2 * r - 2 * low) / max(num_layers - 1, 1)
    return tuple(int(low + layer * step) for layer in range(num_layers))


def metric(tokens: Tokens, seen: Seen) -> Tensor:
    """Return what tokens are compared by, (S, L, E): the mean of their keys over the heads."""
    return tokens.per_sequence(seen.keys_NAE.mean(dim=1))


@torch.no_grad()
def match(metric_SLE: Tensor, r: float, class_token: bool = False, distill: bool = False) -> Plan:
    """Match the r most similar pairs across the even / odd split; paper section 3.1.

    Args:
        metric_SLE: what similarity is taken of; compared by cosine, in float32.
        r: pairs to merge, or their share of the tokens if below 1; at most half of the unprotected.
        class_token: position 0 may not be merged and stays first.
        distill: position 1 may not be merged into and stays second.
    """
    num = metric_SLE.shape[1]
    r = num_removed(num, r, class_token + distill)
    if r == 0:  # the identity; a single token has nobody to be compared with
        place_SL = torch.arange(num, device=metric_SLE.device).expand(len(metric_SLE), -1)
        return Plan(place_SL, place_SL[:, :0], place_SL[:, :0])
    order_SA, partner_SA = propose(metric_SLE, class_token, distill)
    merged_SR, unmerged_SU = order_SA[:, :r], order_SA[:, r:]
    if class_token:
        unmerged_SU = unmerged_SU.sort(dim=-1).values
    odd_SB = torch.arange(1, num, 2, device=metric_SLE.device).expand(len(metric_SLE), -1)
    head = 1 if distill else 0  # with a distillation token: first of A, first of B, the rest
    even_SU = 2 * unmerged_SU
    kept = (even_SU[:, :head], odd_SB[:, :head], even_SU[:, head:], odd_SB[:, head:])
    into_SR = partner_SA.gather(-1, merged_SR) + unmerged_SU.shape[1]
    # Nothing merges into a distillation token, the only odd one placed elsewhere.
    return Plan(torch.cat(kept, dim=1), 2 * merged_SR, into_SR)


class TokenMerging(Reducer):
    """ToMe inside a model: between attention and MLP of every block with r > 0."""

    def __init__(self, config: Config, host: Host) -> None:
        self.config, self.host = config, host
        self.r = config.asked(host.depth)

    def steps(self) -> tuple[Step, ...]:
        layers = (layer for layer, r in enumerate(self.r) if r > 0)
        return tuple(Step(At.IN_BLOCK, i, needs=Layout.EQUAL, gives=Layout.EQUAL) for i in layers)

    def probe(self, layer: int) -> Probe:
        return "keys"

    def in_block(self, tokens: Tokens, seen: Seen, layer: int) -> Tokens:
        plan = self.plan(tokens, seen, layer)
        if not plan.source_SR.shape[1]:
            return tokens
        # By float32 sizes whatever the precision: bfloat16 knows no odd number above 256.
        x_SKD, size_SK1 = merge_weighted(
            tokens.per_sequence(tokens.x_ND),
            tokens.per_sequence(tokens.size_N)[..., None],
            plan,
        )
        coord_SK3 = take(tokens.per_sequence(tokens.coord_N3), plan.kept_SK)
        size_N = size_SK1.flatten()
        return tokens.replace(
            x_ND=x_SKD.flatten(0, 1).to(tokens.x_ND.dtype),
            coord_N3=coord_SK3.flatten(0, 1),
            size_N=size_N,
            mass_N=size_N if self.config.proportional else None,
            lengths=(x_SKD.shape[1],) * len(tokens.lengths),
            layout=Layout.EQUAL,
        )

    def plan(self, tokens: Tokens, seen: Seen, layer: int) -> Plan:
        """Match the tokens of a block."""
        return match(metric(tokens, seen), self.r[layer], class_token=tokens.num_prefix > 0)

    def macs(self, at: At, num_tokens: int) -> int:
        """The product of the even with the odd tokens, over the width of a head."""
        return (num_tokens + 1) // 2 * (num_tokens // 2) * (self.host.dim // self.host.heads)
