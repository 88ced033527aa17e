"""The loss of a batch: one model, several chains, each to a head of its own; maybe a teacher.

    loss = sum over branches i of  CE(head_i(f_i), label)
         + align  * sum over i >= 1 of  alignment(aligner_i(f_i), f_0)
         + distil * sum over i of  (token_gap + gap(f_i, teacher's f))

f_i is what branch i pools of its tokens, before the head's norm. One branch is plain training. With
three budgets of Flux this is its multi-budget training ("Flux-Multi", arXiv 2503.14237): the first
branch, the largest budget, teaches the others and takes no gradient from them. Sums, as there, not
means: more branches are a longer gradient, which the optimiser cuts to its `max_norm`.

It is a module, so that data-parallel ranks see all branches as one forward.

Legend: B clips, K classes, E pooled width, C T H W video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from workloads import losses
from workloads.knobs import Float
from workloads.mistakes import Mistake
from workloads.reducers import base
from workloads.stage import Input, Inputs
from workloads.tokens import Grid, Tokens
from workloads.trace import Trace
from workloads.vit import VideoTransformer

REVISION = 1


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A way through the model."""

    reducers: tuple[base.Config, ...] = ()
    """Chain of this branch; () is dense."""
    head: int = 0
    """Classifier that it ends in."""
    whole: int = 0
    """Clips of at most so many tokens are not reduced. In Flux the budget, for a training with
    flexible grids draws clips that have no more than that."""

    def chain(self, grid: Grid) -> tuple[base.Config, ...]:
        """Return the chain for clips of a grid."""
        return () if grid[0] * grid[1] * grid[2] <= self.whole else self.reducers


@dataclass(frozen=True, kw_only=True)
class Distil:
    """What is learned from the stage that is read as `teacher`."""

    weight: Annotated[float, Float(0.1, 10.0, log=True, stage="finetune")] = 0.0
    """Of the gaps, beside a cross-entropy; 0 = there is no teacher."""
    layers: int = 1
    """Blocks, the last ones, whose tokens are compared; 0 = pooled features alone."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.layers < 0:
            raise Mistake(f"distil: weight={self.weight}, layers={self.layers} must be 0 or more")


class Encoded(NamedTuple):
    """What a model makes of a batch."""

    pooled_BE: Tensor
    tokens: list[Tokens]
    """After each of the last blocks."""


class Teacher:
    """A frozen model that sees all tokens. No module: it belongs to no checkpoint and no rank."""

    def __init__(self, model: VideoTransformer, layers: int) -> None:
        self.model, self.layers = model.eval().requires_grad_(False), layers

    @torch.no_grad()
    def __call__(self, clip_BCTHW: Tensor) -> Encoded:
        return encoded(self.model, clip_BCTHW, Branch(), None, self.layers)


def encoded(
    model: VideoTransformer,
    clip_BCTHW: Tensor,
    branch: Branch,
    seeds: Sequence[int] | None,
    layers: int,
) -> Encoded:
    """Run a model along a branch up to its pooled features."""
    chain = model.chain(branch.chain(model.host.grid(clip_BCTHW)))
    with losses.watched(model, layers) as seen:
        tokens = model.encode(clip_BCTHW, chain, seeds, Trace())
    return Encoded(model.pool(tokens, branch.head), seen)


class Branches(nn.Module):
    """The loss of a model over its branches.

    Args:
        model: is trained.
        branches: the first one teaches the others.
        align: weight of what it teaches.
        smoothing: share of the target that is spread over all classes.
        distil: what `teacher` teaches.
        teacher: None where nobody does.
    """

    def __init__(
        self,
        model: VideoTransformer,
        branches: Sequence[Branch],
        align: float,
        smoothing: float,
        distil: Distil,
        teacher: Teacher | None,
    ) -> None:
        super().__init__()
        heads = [branch.head for branch in branches]
        if not all(0 <= head < len(model.heads) for head in heads):
            what = f"branches: head={max(heads)} of a model with {len(model.heads)}"
            raise Mistake(what, "heads count from 0; the host says how many there are")
        self.model, self.branches = model, tuple(branches)
        self.align, self.smoothing = align, smoothing
        self.distil, self.teacher = distil, teacher

    def forward(self, clip_BCTHW: Tensor, target_BK: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the loss of a batch, a scalar."""
        taught = self.teacher(clip_BCTHW) if self.teacher else None
        parts, first_BE = [], None
        for branch in self.branches:
            layers = self.distil.layers if taught else 0
            found = encoded(self.model, clip_BCTHW, branch, seeds, layers)
            logits_BK = self.model.heads[branch.head](self.model.head_norm(found.pooled_BE))
            smoothing = self.smoothing
            parts.append(F.cross_entropy(logits_BK.float(), target_BK, label_smoothing=smoothing))
            if taught:
                parts.append(self.distil.weight * distillation(found, taught))
            if first_BE is None:
                first_BE = found.pooled_BE
            elif self.align:
                parts.append(self.align * losses.alignment(self._aligned(found, branch), first_BE))
        return torch.stack(parts).sum()

    def _aligned(self, found: Encoded, branch: Branch) -> Tensor:
        if branch.head == self.branches[0].head:
            return found.pooled_BE  # of one kind with the features that it is compared with
        return self.model.pool.aligned(found.pooled_BE, branch.head)


def refuse_unlike(
    model: VideoTransformer, teacher: VideoTransformer, layers: int, pooled: bool = True
) -> None:
    """Refuse a teacher that a model cannot be compared with.

    Args:
        model: the student.
        teacher: see `Teacher`.
        layers: whose tokens are compared.
        pooled: whether what they pool is compared, too.

    Raises:
        Mistake: the two have other tokens, other pixels, or other features.
    """
    own, other = model.host, teacher.host
    for name in ("dim", "tubelet", "patch", "std"):
        if getattr(own, name) != getattr(other, name):
            what = f"teacher: {name}={getattr(other, name)}, that of the model {getattr(own, name)}"
            raise Mistake(what, "both need tokens of one kind")
    if layers > min(own.depth, other.depth):
        what = f"distil: layers={layers} of depths {own.depth} and {other.depth}"
        raise Mistake(what, "compare fewer layers")
    widths = [next(one.heads.parameters()).shape[1] for one in (teacher, model)]
    if pooled and widths[0] != widths[1]:
        what = f"teacher: features of width {widths[0]}, those of the model {widths[1]}"
        raise Mistake(what, "both need pools of one kind")


def distillation(student: Encoded, teacher: Encoded) -> Tensor:
    """Return the gap of pooled features plus that of tokens."""
    gap = losses.gap(student.pooled_BE, teacher.pooled_BE)
    return gap + losses.token_gap(student.tokens, teacher.tokens) if teacher.tokens else gap


def teacher_of(distil: Distil, model: VideoTransformer, inputs: Inputs) -> Teacher | None:
    """Return the model that a training learns from, if any.

    Raises:
        Mistake: none is read, or the two have other tokens.
    """
    if not distil.weight:
        return None
    if "teacher" not in inputs:
        what = f"distil: weight={distil.weight}, but no stage is read as teacher"
        raise Mistake(what, 'add inputs=(("teacher", stage),), or set weight=0')
    return taught_by(inputs["teacher"], model, distil.layers)


def taught_by(source: Input, model: VideoTransformer, layers: int) -> Teacher:
    """Return a finished training as the teacher of a model, seen in its last `layers` blocks.

    Raises:
        Mistake: the two have other tokens.
    """
    weights = load_file(source.weights)
    # As many classes as it was trained for: its heads are not read.
    num_classes = len(weights["heads.0.weight"])
    teacher: VideoTransformer = source.config.model.build(num_classes, source.config.reducers)
    teacher.load_state_dict(weights)
    refuse_unlike(model, teacher, layers)
    device = next(model.parameters()).device
    return Teacher(teacher.to(device), layers)
