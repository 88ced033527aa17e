"""Losses between two views of the same clips: a model and its teacher, or two budgets of a model.

    align(u, f)  = mean over clips and channels of smooth_l1(u / |u| - f / |f|)
    gap(u, f)    = mean over vectors of 2 - 2 cos(u, f)

Flux (Wang et al., ICCV 2025, arXiv 2503.14237) aligns the features of its smaller budgets with
those of its largest by `align`. As all differences of two unit vectors of many channels are below
1, that is (1 - cos) / channels: at the official weight of 1 and 768 channels it is a thousandth of
a cross-entropy, nearly inert. A weight of about the number of channels makes it count.

`gap` is what a student learns from a frozen teacher (UMT, InternVideo2): features and tokens. Its
tokens are those that the student kept; the teacher sees the same grid with all of them.

Deviations from the official pre-training of InternVideo2, on which Flux builds: no decoders between
student and teacher, so both must be of one width; the last `layers` blocks of both are paired one
to one. The teacher learns nothing, so nothing can collapse.

Legend: B clips, N packed tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from workloads.mistakes import Mistake
from workloads.tokens import Tokens, clip_of_token
from workloads.vit import VideoTransformer

REVISION = 1


def alignment(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return the official smooth-L1 of normalised vectors; no gradient reaches the teacher."""
    student_BD = F.normalize(student_BD.float(), dim=-1)
    teacher_BD = F.normalize(teacher_BD.detach().float(), dim=-1)
    return F.smooth_l1_loss(student_BD, teacher_BD)


def gap(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Return the mean of 2 - 2 cos; no gradient reaches the teacher."""
    cos_N = F.cosine_similarity(student_ND.float(), teacher_ND.detach().float(), dim=-1)
    return (2 - 2 * cos_N).mean()


def token_gap(student: Sequence[Tokens], teacher: Sequence[Tokens]) -> Tensor:
    """Return the gap of the student's tokens to the teacher's at the same cells.

    Args:
        student: its tokens after some blocks, any of the grid's cells.
        teacher: its tokens after as many blocks, the full grid.

    Raises:
        Mistake: they are of another grid, as where the student chose frames.
    """
    gaps = []
    for few, all_of_them in zip(student, teacher, strict=True):
        if few.grid != all_of_them.grid:
            what = f"distil: a grid of {few.grid} has no tokens in common with {all_of_them.grid}"
            raise Mistake(what, "compare pooled features alone: layers=0")
        x_ND, place_N = without_class(few)
        full_ND, _ = without_class(all_of_them)
        gaps.append(gap(x_ND, full_ND[place_N]))
    return torch.stack(gaps).mean()


def without_class(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Return the tokens of cells (N, D), and the place of each in the full grids of the batch (N,).

    A merged token is at the cell that the others joined.
    """
    _, rows, columns = tokens.grid
    t_N, y_N, x_N = tokens.coord_N3.unbind(dim=1)
    clip_N = clip_of_token(tokens)
    place_N = ((clip_N * tokens.grid[0] + t_N) * rows + y_N) * columns + x_N
    if not tokens.num_prefix:
        return tokens.x_ND, place_N
    if tokens.is_equal:  # without asking the device how many
        own = slice(tokens.num_prefix, None)
        x_SLD, place_SL = tokens.per_sequence(tokens.x_ND), tokens.per_sequence(place_N)
        return x_SLD[:, own].flatten(0, 1), place_SL[:, own].flatten()
    is_cell_N = t_N >= 0
    return tokens.x_ND[is_cell_N], place_N[is_cell_N]


@contextmanager
def watched(model: VideoTransformer, layers: int) -> Iterator[list[Tokens]]:
    """Collect the tokens that leave each of the last blocks while a model runs."""
    seen: list[Tokens] = []
    blocks = list(model.blocks)[len(model.blocks) - layers :]
    handles = [
        block.register_forward_hook(lambda block, given, left: seen.append(left))
        for block in blocks
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
