"""Packed tokens, the one currency inside a model: every sequence back to back, no padding anywhere.

Legend: N packed tokens, S sequences, L tokens of one sequence, B clips, D width, K kept.
A cell is a place in the token grid (t, y, x); order is (t, y, x), row-major, everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

REVISION = 2
Grid = tuple[int, int, int]


class Layout(IntEnum):
    """How regular the attention sequences are; each one is a special case of the next."""

    GRID = 0
    """Every sequence is its full grid, in order."""
    EQUAL = 1
    """The same number of tokens in every sequence."""
    RAGGED = 2
    """Anything."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a batch of clips between two steps of a model. Never changed in place."""

    x_ND: Tensor
    """All sequences back to back."""
    coord_N3: Tensor
    """(t, y, x) cell of each token; of a merged token, the cell that the others joined."""
    size_N: Tensor
    """Grid cells a token stands for (run length, number of merged tokens), float32."""
    mass_N: Tensor | None
    """What a token weighs as a key: attention adds log(mass). None: all alike.

    Only merging reducers set it: a run length must not bias attention."""
    lengths: tuple[int, ...]
    """Tokens of each sequence, on the host."""
    clips: tuple[int, ...]
    """Clip of each sequence: one a clip (joint space-time) or T a clip (attention per frame)."""
    num_prefix: int
    """Class tokens at the head of a sequence: never reduced, never counted."""
    grid: Grid
    layout: Layout

    @property
    def is_equal(self) -> bool:
        """Whether all sequences have one length, so that x_ND is also a dense S L D view."""
        return self.layout < Layout.RAGGED

    def replace(self, **changes: Any) -> Tokens:  # Any: each field has a type of its own
        """Return the same tokens with some fields changed."""
        return dataclasses.replace(self, **changes)

    def per_sequence(self, value_N: Tensor) -> Tensor:
        """View a packed tensor (N, ...) as (S, L, ...); needs equal lengths."""
        return value_N.view(len(self.lengths), self.lengths[0], *value_N.shape[1:])


def num_kept(n: int, keep: float) -> int:
    """Return how many of `n` tokens a keep ratio leaves: truncated exactly as the papers' code
    does.

    Their code states a *drop* ratio and truncates what is left in Python floats, so that 0.9 of 10
    tokens may be 8 or 9 by rounding; going the same way round gives the same counts.
    """
    return int((1 - (1 - keep)) * n)


@lru_cache(maxsize=64)
def _cells(grid: Grid, device: torch.device) -> Tensor:
    axes = [torch.arange(n, device=device) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def cells(grid: Grid, num_clips: int, device: torch.device) -> Tensor:
    """Return the cell of every token of `num_clips` full grids, (N, 3)."""
    return _cells(grid, device).repeat(num_clips, 1)


def packed_index(size_BL: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the flat index of every kept cell, (N,), and how many each clip keeps.

    Args:
        size_BL: cells that the token at each cell stands for; 0 = the cell is dropped.
    """
    keep_BL = size_BL > 0
    # NOTE: the one host sync of ragged batches: everything downstream slices by these numbers.
    lengths = tuple(keep_BL.sum(dim=1).tolist())
    return keep_BL.flatten().nonzero().squeeze(1), lengths


def take(tokens: Tokens, index_N: Tensor, lengths: tuple[int, ...]) -> Tokens:
    """Return some of the tokens, by their packed places, which rise; without class tokens.

    Args:
        tokens: a sequence a clip.
        index_N: where the tokens to keep lie.
        lengths: how many of them each sequence has.
    """
    return tokens.replace(
        x_ND=tokens.x_ND[index_N],
        coord_N3=tokens.coord_N3[index_N],
        size_N=tokens.size_N[index_N],
        mass_N=None if tokens.mass_N is None else tokens.mass_N[index_N],
        lengths=lengths,
        layout=Layout.EQUAL if len(set(lengths)) == 1 else Layout.RAGGED,
    )


def offsets(lengths: Sequence[int]) -> list[int]:
    """Return where each sequence starts, and the total last."""
    return list(accumulate(lengths, initial=0))


def by_frame(tokens: Tokens) -> Tokens:
    """Return the same tokens with a sequence for each frame instead of one for each clip.

    Nothing moves, as time is the outermost order; a frame may be left without tokens.
    """
    time, rows, columns = tokens.grid
    clips = tuple(clip for clip in tokens.clips for _ in range(time))
    if tokens.layout == Layout.GRID:
        return tokens.replace(lengths=(rows * columns,) * len(clips), clips=clips)
    frame_N = clip_of_token(tokens) * time + tokens.coord_N3[:, 0]
    lengths = tuple(torch.bincount(frame_N, minlength=len(clips)).tolist())
    layout = Layout.EQUAL if len(set(lengths)) == 1 else Layout.RAGGED
    return tokens.replace(lengths=lengths, clips=clips, layout=layout)


def by_place(tokens: Tokens) -> tuple[Tokens, Tensor]:
    """Regroup tokens of frames: a sequence for each place of a clip, over time.

    Class tokens are a place of their own. Masses are left behind: they weigh tokens of one frame
    against each other. A full grid is only transposed; else the sequences have any lengths.

    Returns:
        The tokens, and where each of them was, (N,).
    """
    time, rows, columns = tokens.grid
    num_clips, device = tokens.clips[-1] + 1, tokens.x_ND.device
    if tokens.layout == Layout.GRID:
        shape = (num_clips, time, tokens.lengths[0])
        order_N = torch.arange(len(tokens.x_ND), device=device).view(shape).mT.flatten()
        groups = [clip for clip in range(num_clips) for _ in range(tokens.lengths[0])]
        lengths = (time,) * len(groups)
    else:
        _, y_N, x_N = tokens.coord_N3.unbind(dim=1)
        num = rows * columns + 1
        place_N = torch.where(y_N < 0, num - 1, y_N * columns + x_N) + clip_of_token(tokens) * num
        order_N = place_N.argsort(stable=True)  # stable: what was in order of time stays so
        counts = torch.bincount(place_N, minlength=num_clips * num).tolist()
        groups = [place // num for place, count in enumerate(counts) if count]
        lengths = tuple(count for count in counts if count)
    regrouped = tokens.replace(
        x_ND=tokens.x_ND[order_N],
        coord_N3=tokens.coord_N3[order_N],
        size_N=tokens.size_N[order_N],
        mass_N=None,
        lengths=lengths,
        clips=tuple(groups),
        num_prefix=0,
        layout=Layout.EQUAL if len({*lengths}) == 1 else Layout.RAGGED,
    )
    return regrouped, order_N


def frame_pairs(value_N: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """View packed values of full grids as frames 2i and 2i + 1, each (B, T / 2, M, ...)."""
    pairs = value_N.unflatten(0, (tokens.clips[-1] + 1, tokens.grid[0] // 2, 2, -1))
    first, later = pairs.unbind(dim=2)
    return first, later


def with_half_the_frames(tokens: Tokens, x_BFMD: Tensor, is_merge: bool = True) -> Tokens:
    """Return one frame for each two of full grids, with class tokens or without.

    Args:
        tokens: full grids, a sequence a clip or a frame.
        x_BFMD: what becomes of each pair of frames.
        is_merge: whether a token stands for both of its pair, or the later one is dropped.
    """
    time, *sides = tokens.grid
    is_frame = len(tokens.clips) == (tokens.clips[-1] + 1) * time  # a clip of one frame has no half
    coord_BFM3, _ = frame_pairs(tokens.coord_N3, tokens)
    t_BFM1 = coord_BFM3[..., :1].div(2, rounding_mode="floor")  # that of a class token stays -1
    size_BFM, later_BFM = frame_pairs(tokens.size_N, tokens)
    return tokens.replace(
        x_ND=x_BFMD.flatten(0, 2),
        coord_N3=torch.cat([t_BFM1, coord_BFM3[..., 1:]], dim=-1).flatten(0, 2),
        size_N=(size_BFM + later_BFM if is_merge else size_BFM).flatten(),
        lengths=tokens.lengths[::2] if is_frame else tuple(n // 2 for n in tokens.lengths),
        clips=tokens.clips[::2] if is_frame else tokens.clips,
        grid=(time // 2, *sides),
    )


def with_prefix(tokens: Tokens, prefix_PD: Tensor) -> Tokens:
    """Return tokens with the same class tokens at the head of every sequence.

    Their place is outside of the grid (-1, -1, -1), their size and mass are 1.
    """
    num, device = len(prefix_PD), tokens.x_ND.device
    lengths = tuple(length + num for length in tokens.lengths)
    starts_S = torch.tensor(offsets(lengths)[:-1], device=device)
    head_N = (starts_S[:, None] + torch.arange(num, device=device)).flatten()
    old_S = torch.tensor(tokens.lengths, device=device)
    shift_N = (torch.arange(1, len(lengths) + 1, device=device) * num).repeat_interleave(
        old_S, output_size=len(tokens.x_ND)
    )
    rest_N = torch.arange(len(tokens.x_ND), device=device) + shift_N

    def placed(rest: Tensor, head: Tensor) -> Tensor:
        out = rest.new_empty(sum(lengths), *rest.shape[1:])
        head = head.to(rest.dtype).expand(len(lengths), num, *rest.shape[1:]).flatten(0, 1)
        return out.index_copy(0, rest_N, rest).index_copy(0, head_N, head)

    one = tokens.size_N.new_ones(1, num)
    return tokens.replace(
        x_ND=placed(tokens.x_ND, prefix_PD[None]),
        coord_N3=placed(tokens.coord_N3, -tokens.coord_N3.new_ones(1, num, 3)),
        size_N=placed(tokens.size_N, one),
        mass_N=None if tokens.mass_N is None else placed(tokens.mass_N, one),
        lengths=lengths,
        num_prefix=num,
    )


def without_prefix(tokens: Tokens) -> Tokens:
    """Return the tokens of the grid alone, without class tokens."""
    if not tokens.num_prefix:
        return tokens
    is_cell_N = tokens.coord_N3[:, 0] >= 0
    lengths = tuple(length - tokens.num_prefix for length in tokens.lengths)
    rest_N = is_cell_N.nonzero().squeeze(1)
    mass_N = None if tokens.mass_N is None else tokens.mass_N[rest_N]
    return tokens.replace(
        x_ND=tokens.x_ND[rest_N],
        coord_N3=tokens.coord_N3[rest_N],
        size_N=tokens.size_N[rest_N],
        mass_N=mass_N,
        lengths=lengths,
        num_prefix=0,
    )


def clip_of_token(tokens: Tokens) -> Tensor:
    """Return the clip of each packed token, (N,)."""
    device = tokens.x_ND.device
    clips_S = torch.tensor(tokens.clips, device=device)
    lengths_S = torch.tensor(tokens.lengths, device=device)
    total = sum(tokens.lengths)
    return clips_S.repeat_interleave(lengths_S, output_size=total)


def max_by_clip(value_N1: Tensor, tokens: Tokens) -> Tensor:
    """Return for each token the greatest of a packed column (N, 1) in its clip, (N, 1)."""
    clip_N1 = clip_of_token(tokens)[:, None]
    most_B1 = value_N1.new_zeros(tokens.clips[-1] + 1, 1)
    most_B1 = most_B1.scatter_reduce(0, clip_N1, value_N1, "amax", include_self=False)
    return most_B1[clip_N1[:, 0]]


def sum_by_clip(value_N: Tensor, tokens: Tokens) -> Tensor:
    """Add up a packed tensor (N, ...) over the tokens of each clip, (B, ...)."""
    num_clips = tokens.clips[-1] + 1
    if tokens.is_equal:
        return value_N.view(num_clips, -1, *value_N.shape[1:]).sum(dim=1)
    out = value_N.new_zeros(num_clips, *value_N.shape[1:], dtype=torch.float32)
    # Float32 whatever the precision: bfloat16 cannot count beyond 256.
    return out.index_add(0, clip_of_token(tokens), value_N.float()).to(value_N.dtype)
