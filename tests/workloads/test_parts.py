"""Parts of a host against slow versions: position tables, tubelet embedding, pools."""

from __future__ import annotations

import math

import pytest
import torch
from packing import draw, packed
from torch import Tensor, nn

from workloads.parts import (
    AttentionPool,
    MeanPool,
    PatchEmbed,
    Positions,
    sincos_1d,
    sincos_3d,
)
from workloads.tokens import Layout, Tokens, cells

CPU = torch.device("cpu")
PACKS = {
    "equal": packed((5, 5, 5)),
    "ragged": packed((5, 1, 7)),
    "frames": packed((4, 4, 4, 4), clips=(0, 0, 1, 1)),
    "ragged frames": packed((4, 2, 3, 1), clips=(0, 0, 1, 1)),
}


def by_clip(tokens: Tokens) -> list[tuple[Tensor, Tensor]]:
    """Return tokens and sizes of each clip."""
    clips_S = torch.tensor(tokens.clips)
    clip_N = clips_S.repeat_interleave(torch.tensor(tokens.lengths))
    return [(tokens.x_ND[clip_N == b], tokens.size_N[clip_N == b]) for b in clips_S.unique()]


def test_flat_table_is_the_formula_of_videomae() -> None:
    table_LD = sincos_1d(7, 6)
    for n in range(7):
        for j in range(6):
            angle = n / 10000 ** ((j - j % 2) / 6)
            expected = math.cos(angle) if j % 2 else math.sin(angle)
            assert table_LD[n, j] == pytest.approx(expected, abs=1e-6)  # float32


def test_separable_table_gives_each_axis_its_own_channels() -> None:
    grid = (3, 4, 5)
    table_THWD = sincos_3d(grid, 20).view(*grid, 20)
    widths = [8, 6, 6]  # two sixths of 20, rounded down to pairs, for rows and columns
    for axis, part in enumerate(table_THWD.split(widths, dim=-1)):
        others = [i for i in range(3) if i != axis]
        for other in others:  # constant along the two other axes
            assert torch.equal(part, part.narrow(other, 0, 1).expand_as(part))
        along = part.movedim(axis, 0)[:, 0, 0]
        assert torch.equal(along, sincos_1d(grid[axis], widths[axis]))


def test_positions_of_tokens_are_the_rows_of_their_cells() -> None:
    positions = Positions(sincos_1d(64, 8), (4, 4, 4))
    tokens = packed((5, 1, 7))
    flat = [(t * 4 + y) * 4 + x for t, y, x in tokens.coord_N3.tolist()]
    assert torch.equal(positions(tokens), sincos_1d(64, 8)[flat])


def test_positions_on_a_finer_grid_lie_between_those_they_were_made_for() -> None:
    """A table that rises by 1 a frame rises by 1/2 a frame on twice the frames."""
    table_LD = cells((4, 3, 3), 1, CPU)[:, :1].float()
    finer = Positions(table_LD, (4, 3, 3)).on((8, 3, 3)).view(8, 3, 3)
    torch.testing.assert_close(finer[1:-1, 0, 0].diff(), torch.full((5,), 0.5))
    assert torch.equal(finer, finer[:, :1, :1].expand_as(finer))


@pytest.mark.parametrize("tubelet", [1, 2])
def test_embedding_is_the_convolution_that_checkpoints_hold(tubelet: int) -> None:
    embed, clip_BCTHW = PatchEmbed(tubelet, 4, dim=10), draw(2, 3, 4, 8, 12)
    grid = (4 // tubelet, 2, 3)
    expected = embed.proj(clip_BCTHW).flatten(2).transpose(1, 2).flatten(0, 1)
    x_ND = embed(clip_BCTHW, grid, None)
    torch.testing.assert_close(x_ND, expected, rtol=0, atol=1e-5)  # a product, not a convolution
    index_N = torch.tensor([1, 5, 6, len(x_ND) - 1])
    torch.testing.assert_close(embed(clip_BCTHW, grid, index_N), x_ND[index_N], rtol=0, atol=1e-5)


def test_tubelets_are_cut_in_the_order_of_cells() -> None:
    embed, clip_BCTHW = PatchEmbed(2, 4, dim=1), draw(2, 3, 4, 8, 12)
    tubelets = embed.tubelets(clip_BCTHW, (2, 2, 3), None)
    for n, (t, y, x) in enumerate(cells((2, 2, 3), 2, CPU).tolist()):
        clip_CTHW = clip_BCTHW[n // 12]
        cut = clip_CTHW[:, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert torch.equal(tubelets[n], cut)
    some = embed.tubelets(clip_BCTHW, (2, 2, 3), torch.tensor([3, 20]))
    assert torch.equal(some, tubelets[[3, 20]])


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("name", PACKS)
def test_mean_pool_is_the_mean_of_a_clip_and_then_a_norm(name: str, by_size: bool) -> None:
    pool = MeanPool(8, 1e-6, by_size)
    means = [
        (x_LD * size_L[:, None]).sum(dim=0) / size_L.sum() if by_size else x_LD.mean(dim=0)
        for x_LD, size_L in by_clip(PACKS[name])
    ]
    expected = nn.functional.layer_norm(torch.stack(means), (8,), eps=1e-6)
    torch.testing.assert_close(pool(PACKS[name]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PACKS)
def test_attention_pool_is_a_softmax_over_the_tokens_of_a_clip(name: str) -> None:
    pool, rows = AttentionPool(8, 1e-6), []
    for x_LD, _ in by_clip(PACKS[name]):
        x_LD = pool.norm(x_LD)
        weight_L1 = (pool.SHARPNESS * pool.score(x_LD)).softmax(dim=0)
        rows.append((x_LD * weight_L1).sum(dim=0))
    torch.testing.assert_close(pool(PACKS[name]), torch.stack(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", [MeanPool(8, 1e-6), AttentionPool(8, 1e-6)])
def test_pools_give_the_same_for_dense_and_for_ragged_packs(pool: nn.Module) -> None:
    dense = packed((6, 6))
    # Sums by index against sums along an axis.
    torch.testing.assert_close(pool(dense.replace(layout=Layout.RAGGED)), pool(dense))


def test_attention_pool_does_not_look_at_other_clips() -> None:
    """Normed tokens of opposite sign under a large weight: scores of about 80 and of -80."""
    pool, tokens = AttentionPool(8, 1e-6), packed((3, 3))
    nn.init.constant_(pool.score.weight, 0.0)
    pool.score.weight.data[0, 0] = 15.0
    tokens = tokens.replace(x_ND=tokens.x_ND.abs())
    tokens.x_ND[:, 0] = torch.tensor([10.0, 10, 10, -10, -10, -10])
    alone = [pool(packed((3,)).replace(x_ND=x_LD)) for x_LD in tokens.x_ND.split(3)]
    torch.testing.assert_close(pool(tokens), torch.cat(alone))
