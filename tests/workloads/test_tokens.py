"""Packed tokens: cells in (t, y, x) order, one index for a batch, sums by clip."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from packing import packed
from torch import Tensor

from workloads.tokens import (
    Layout,
    Tokens,
    cells,
    clip_of_token,
    num_kept,
    offsets,
    packed_index,
    sum_by_clip,
)

CPU = torch.device("cpu")
# Equal and ragged, one sequence a clip and several (attention per frame).
PACKS = {
    "equal": packed((5, 5, 5)),
    "ragged": packed((5, 1, 7)),
    "frames": packed((4, 4, 4, 4, 4, 4), clips=(0, 0, 1, 1, 2, 2)),
    "ragged frames": packed((4, 2, 3, 1), clips=(0, 0, 1, 1)),
    "one clip": packed((6,)),
}


def slow_sum(value_N: Tensor, tokens: Tokens) -> list[float]:
    sums = [0.0] * (max(tokens.clips) + 1)
    values = iter(value_N.tolist())
    for clip, length in zip(tokens.clips, tokens.lengths, strict=True):
        sums[clip] += sum(next(values) for _ in range(length))
    return sums


def test_cells_run_through_columns_first_then_rows_then_time() -> None:
    grid = (2, 3, 2)
    by_hand = list(itertools.product(*map(range, grid)))
    assert [tuple(cell) for cell in cells(grid, 2, CPU).tolist()] == by_hand * 2


def test_kept_cells_are_indexed_over_the_batch_in_order() -> None:
    size_BL = torch.tensor([[2, 0, 1, 0], [0, 0, 0, 3], [1, 1, 1, 1]])
    index_N, lengths = packed_index(size_BL)
    assert index_N.tolist() == [0, 2, 7, 8, 9, 10, 11]
    assert lengths == (2, 1, 4)
    assert size_BL.flatten()[index_N].tolist() == [2, 1, 3, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("n", "keep", "kept"),
    [
        (1568, 0.5, 784),
        (1568, 1.0, 1568),
        (10, 0.9, 9),
        (10, 0.3, 3),
        (10, 0.1, 0),  # 1 - (1 - 0.1) is 0.09999999999999998 in Python
        (100, 0.29, 29),  # 0.29 * 100 is 28.999999999999996, the way round brings 29 back
        (7, 0.5, 3),
    ],
)
def test_num_kept_truncates_as_the_papers_code_does(n: int, keep: float, kept: int) -> None:
    assert num_kept(n, keep) == kept


def test_layouts_are_ordered_from_regular_to_ragged() -> None:
    assert Layout.GRID < Layout.EQUAL < Layout.RAGGED
    assert [packed((3, 3), layout=layout).is_equal for layout in Layout] == [True, True, False]


def test_offsets_end_with_the_total() -> None:
    assert offsets((3, 1, 4)) == [0, 3, 4, 8]


@pytest.mark.parametrize("name", PACKS)
def test_sums_by_clip_are_those_of_a_loop(name: str) -> None:
    tokens = PACKS[name]
    # Sums in another order.
    torch.testing.assert_close(
        sum_by_clip(tokens.x_ND[:, 0], tokens), torch.tensor(slow_sum(tokens.x_ND[:, 0], tokens))
    )
    assert sum_by_clip(tokens.size_N, tokens).tolist() == slow_sum(tokens.size_N, tokens)
    assert sum_by_clip(tokens.x_ND, tokens).shape == (max(tokens.clips) + 1, 8)


@pytest.mark.parametrize("name", PACKS)
def test_each_token_knows_its_clip(name: str) -> None:
    tokens = PACKS[name]
    pairs = zip(tokens.clips, tokens.lengths, strict=True)
    assert clip_of_token(tokens).tolist() == [clip for clip, n in pairs for _ in range(n)]


def test_sequences_of_one_length_are_a_view() -> None:
    tokens = PACKS["equal"]
    view_SLD = tokens.per_sequence(tokens.x_ND)
    assert view_SLD.shape == (3, 5, 8)
    assert view_SLD.data_ptr() == tokens.x_ND.data_ptr()
    assert torch.equal(view_SLD[1], tokens.x_ND[5:10])


def test_tokens_are_replaced_never_changed() -> None:
    tokens = PACKS["equal"]
    other = tokens.replace(num_prefix=1)
    assert (tokens.num_prefix, other.num_prefix) == (0, 1)
    assert other.x_ND is tokens.x_ND
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokens.num_prefix = 2


@pytest.mark.gpu
def test_sums_of_many_half_precision_tokens_on_a_gpu_do_not_stop_at_256() -> None:
    """Adding ones one by one in bfloat16 stays at 256 for ever."""
    tokens = packed((1000, 500))
    clips_of = tokens.replace(x_ND=tokens.x_ND.cuda())
    ones_N1 = torch.ones(1500, 1, dtype=torch.bfloat16, device="cuda")
    assert sum_by_clip(ones_N1, clips_of).flatten().tolist() == [1000, 500]
