"""Merging tokens: a plan says what joins what, and is applied to values, sizes and sources alike.

What matches with what is a reducer's own affair; what follows from it is the same for all of them.

Legend: S sequences, L tokens of one, K tokens left, R merged away, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, arange
from torch.nn import functional as F

REVISION = 1


class Plan(NamedTuple):
    """What merges with what: computed once, applied to tokens, sizes and sources alike."""

    kept_SK: Tensor
    """Input position of the token that each output started as."""
    source_SR: Tensor
    """Input positions that are merged away."""
    into_SR: Tensor
    """Output position that each source goes to."""


def expand(index_SK: Tensor, like_SLD: Tensor) -> Tensor:
    """Repeat positions over the width of what is gathered by them, (S, K, D)."""
    return index_SK[..., None].expand(-1, -1, like_SLD.shape[-1])


def merge_sum(x_SLD: Tensor, plan: Plan) -> Tensor:
    """Add up the tokens of each group, (S, K, D)."""
    kept_SKD = x_SLD.gather(1, expand(plan.kept_SK, x_SLD))
    source_SRD = x_SLD.gather(1, expand(plan.source_SR, x_SLD))
    return kept_SKD.scatter_add(1, expand(plan.into_SR, x_SLD), source_SRD)


def merge_mean(x_SLD: Tensor, plan: Plan) -> Tensor:
    """Average the tokens of each group, all alike, (S, K, D)."""
    return merge_sum(x_SLD, plan) / merge_sum(x_SLD.new_ones(*x_SLD.shape[:2], 1), plan)


def merge_weighted(x_SLD: Tensor, size_SL1: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Average the tokens of each group by size; return tokens (S, K, D) and sizes (S, K, 1)."""
    merged_SK1 = merge_sum(size_SL1, plan)
    return merge_sum(x_SLD * size_SL1, plan) / merged_SK1, merged_SK1


def destination(plan: Plan) -> Tensor:
    """Return the output position that each input token went to, (S, L)."""
    num = plan.kept_SK.shape[1] + plan.source_SR.shape[1]
    out_SL = plan.kept_SK.new_empty(len(plan.kept_SK), num)
    places_SK = arange(plan.kept_SK.shape[1], device=out_SL.device).expand_as(plan.kept_SK)
    return out_SL.scatter(1, plan.kept_SK, places_SK).scatter(1, plan.source_SR, plan.into_SR)


def sources(plans: list[Plan]) -> Tensor:
    """Return which original token is in which output after some merges, bool (S, K, L)."""
    place_SL = destination(plans[0])
    for plan in plans[1:]:
        place_SL = destination(plan).gather(1, place_SL)
    return F.one_hot(place_SL, plans[-1].kept_SK.shape[1]).transpose(1, 2).bool()


def unmerge(x_SKD: Tensor, plan: Plan, official_order: bool = False) -> Tensor:
    """Copy each output back to every token that went into it, (S, L, D)."""
    if official_order:  # all even tokens before all odd ones, wherever a distillation token went
        by_parity = (plan.kept_SK % 2).argsort(dim=1, stable=True)
        plan = plan._replace(kept_SK=plan.kept_SK.gather(1, by_parity))
    return x_SKD.gather(1, expand(destination(plan), x_SKD))
