"""Merging tokens: a plan says what joins what, and is applied to values, sizes and sources alike.

What tokens are compared by, and what a source counts for, is a reducer's own affair; the split into
even and odd positions, how many may merge, and what follows from a plan are common to all of them.

Legend: S sequences, L tokens of one, A even ones, B odd ones, K tokens left, R merged away, D
width, E width of what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, arange
from torch.nn import functional as F

from workloads.mistakes import Mistake

REVISION = 2


class Plan(NamedTuple):
    """What merges with what: computed once, applied to tokens, sizes and sources alike."""

    kept_SK: Tensor
    """Input position of the token that each output started as."""
    source_SR: Tensor
    """Input positions that are merged away."""
    into_SR: Tensor
    """Output position that each source goes to."""


# How many merge in which block.


def free_schedule(name: str, counts: Sequence[float], depth: int) -> tuple[float, ...]:
    """Return what each block of a model is asked to remove; the blocks not listed, nothing.

    Raises:
        Mistake: more numbers than blocks.
    """
    if len(counts) > depth:
        what = f"{name}: a schedule of {len(counts)} blocks {tuple(counts)!r}"
        raise Mistake(f"{what} is longer than the model is deep ({depth})", "one number a block")
    return (*counts, *(0,) * (depth - len(counts)))


def refuse_counts(name: str, counts: Sequence[float]) -> None:
    """Refuse a free schedule that means nothing.

    Raises:
        Mistake: a number below 0, or neither a share nor whole.
    """
    for count in counts:
        if not (math.isfinite(count) and count >= 0 and (count < 1 or count == int(count))):
            what = f"{name}: counts={tuple(counts)!r}: {count} is neither a share nor a number"
            raise Mistake(
                f"{what} of tokens", "below 1: a share of the tokens; else a whole number"
            )


def num_removed(num: int, asked: float, protected: int = 0) -> int:
    """Return how many of `num` tokens a block removes: `asked` is a share if below 1, truncated.

    Never more than half of the unprotected ones: each pair leaves one.
    """
    wanted = int(num * asked) if asked < 1 else int(asked)
    return max(min(wanted, (num - protected) // 2), 0)


# What may merge with what.


def _in_float32(device: torch.device) -> AbstractContextManager[object]:
    """Return where products stay in float32, whatever the precision of the model."""
    if device.type == "meta":  # has no autocast to leave
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@torch.no_grad()
def propose(
    metric_SLE: Tensor, class_token: bool = False, distill: bool = False
) -> tuple[Tensor, Tensor]:
    """Let each even token propose the odd one most similar to it, by cosine and in float32.

    Args:
        metric_SLE: what similarity is taken of.
        class_token: position 0 proposes last of all.
        distill: position 1 is proposed by nobody else.

    Returns:
        order_SA: even tokens (their number among the even), most similar proposal first, of equals
            the lower position; partner_SA: number among the odd that each of them proposes.
    """
    with _in_float32(metric_SLE.device):
        unit_SLE = F.normalize(metric_SLE.float(), dim=-1)
        similar_SAB = unit_SLE[:, ::2] @ unit_SLE[:, 1::2].transpose(-1, -2)
    if class_token:
        similar_SAB[:, 0] = -torch.inf
    if distill:
        similar_SAB[:, :, 0] = -torch.inf
    best_SA, partner_SA = similar_SAB.max(dim=-1)
    return best_SA.argsort(dim=-1, descending=True, stable=True), partner_SA


# What follows from a plan.


def _flat(index_SK: Tensor, length: int) -> Tensor:
    """Return positions in sequences as rows of their pack, (S K,)."""
    start_S1 = arange(len(index_SK), device=index_SK.device)[:, None] * length
    return (index_SK + start_S1).flatten()


def take(x_SLD: Tensor, index_SK: Tensor) -> Tensor:
    """Return the tokens at some positions of each sequence, (S, K, D)."""
    # Whole rows of the pack: a gather looks up each number by itself, 10 times slower.
    rows = x_SLD.flatten(0, 1).index_select(0, _flat(index_SK, x_SLD.shape[1]))
    return rows.unflatten(0, index_SK.shape)


def _add(kept_SKD: Tensor, into_SR: Tensor, source_SRD: Tensor) -> Tensor:
    """Add sources to the outputs that they go to; `kept_SKD` is nobody else's."""
    rows, to_R = source_SRD.flatten(0, 1), _flat(into_SR, kept_SKD.shape[1])
    return kept_SKD.flatten(0, 1).index_add_(0, to_R, rows).view_as(kept_SKD)


def merge_sum(x_SLD: Tensor, plan: Plan) -> Tensor:
    """Add up the tokens of each group, (S, K, D)."""
    return _add(take(x_SLD, plan.kept_SK), plan.into_SR, take(x_SLD, plan.source_SR))


def merge_mean(x_SLD: Tensor, plan: Plan) -> Tensor:
    """Average the tokens of each group, all alike, (S, K, D)."""
    return merge_weighted(x_SLD, x_SLD.new_ones(*x_SLD.shape[:2], 1), plan)[0]


def merge_weighted(
    x_SLD: Tensor, size_SL1: Tensor, plan: Plan, share_SR1: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average the tokens of each group by size; return tokens (S, K, D) and sizes (S, K, 1).

    A token that nothing joins stays what it is, bit for bit.

    Args:
        x_SLD: tokens.
        size_SL1: what each of them weighs.
        plan: what joins what.
        share_SR1: part of its size that each source brings along, all of it if not given.
    """
    kept_SK1, source_SR1 = take(size_SL1, plan.kept_SK), take(size_SL1, plan.source_SR)
    if share_SR1 is not None:
        source_SR1 = source_SR1 * share_SR1
    merged_SK1 = _add(kept_SK1.clone(), plan.into_SR, source_SR1)
    x_SKD = take(x_SLD, plan.kept_SK) * (kept_SK1 / merged_SK1)
    x_SRD = take(x_SLD, plan.source_SR) * (source_SR1 / take(merged_SK1, plan.into_SR))
    return _add(x_SKD, plan.into_SR, x_SRD), merged_SK1


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


def contributions(merges: Sequence[tuple[Plan, Tensor]]) -> Tensor:
    """Return what is left of each original token in each output after some merges, (S, K, L).

    Each merge is a plan and the share of each source (S, R, 1). A share of a share is their
    product; a column of zeros is a token that was lost.
    """
    first = merges[0][0]
    num = first.kept_SK.shape[1] + first.source_SR.shape[1]
    left_SLL = torch.eye(num, device=first.kept_SK.device).expand(len(first.kept_SK), -1, -1)
    for plan, share_SR1 in merges:
        brought_SRL = take(left_SLL, plan.source_SR) * share_SR1
        into_SRL = plan.into_SR[..., None].expand_as(brought_SRL)
        left_SLL = take(left_SLL, plan.kept_SK).scatter_reduce(1, into_SRL, brought_SRL, "amax")
    return left_SLL


def unmerge(x_SKD: Tensor, plan: Plan, official_order: bool = False) -> Tensor:
    """Copy each output back to every token that went into it, (S, L, D)."""
    if official_order:  # all even tokens before all odd ones, wherever a distillation token went
        by_parity = (plan.kept_SK % 2).argsort(dim=1, stable=True)
        plan = plan._replace(kept_SK=plan.kept_SK.gather(1, by_parity))
    return take(x_SKD, destination(plan))
