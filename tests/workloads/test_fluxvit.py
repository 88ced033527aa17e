"""FluxViT: properties P9-P11 and P14 of its card, its pitfalls, and the mistakes one can make."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from packing import draw, packed
from torch import Tensor, nn
from torch.nn import functional as F

from workloads import cost
from workloads.mistakes import Mistake
from workloads.models import HostConfig, fluxvit
from workloads.parts import ClassToken, LayerScale, NormedEmbed, RMSNorm, axis_code, grid_code
from workloads.reducers import drop, flux, rlt
from workloads.tokens import Grid, Layout, Tokens, cells
from workloads.trace import Trace
from workloads.vit import VideoTransformer, is_added

CPU = torch.device("cpu")
SMALL = fluxvit.Config(
    dim=32, depth=2, heads=4, patch=4, frames=8, size=16, budgets=(96, 64, 32), pool_heads=2,
    features=24, layer_scale=1.0,
)  # fmt: skip


def small(seed: int = 0, **changes: Any) -> VideoTransformer:
    """Return a small model in which every part matters: no weight is at its neutral start."""
    model = replace(SMALL, **changes).build(5, seed=seed).eval().requires_grad_(False)
    for i, weight in enumerate(model.parameters()):
        if weight.ndim == 1:
            weight.add_(0.3 * draw(*weight.shape, seed=i))
    return model


def clips(batch: int = 2, frames: int = 8, height: int = 16, width: int = 16) -> Tensor:
    return draw(batch, 3, frames, height, width)


def encoded(model: VideoTransformer, clip_BCTHW: Tensor, *chain: Any) -> Tokens:
    return model.encode(clip_BCTHW, model.chain(chain), None, Trace())


# P9: positions.


def slow_positions(model: VideoTransformer, grid: Grid) -> Tensor:
    """Map a channel, then go to the grid frame by frame: time first, then each frame."""
    part, dim = model.positions, SMALL.dim
    table_LD = part.table * part.scale + part.shift
    (before, rows, columns), (time, *frame) = SMALL.grid, grid
    lines = table_LD.view(before, rows * columns * dim).T[None]
    lines = F.interpolate(lines, size=time, mode="linear")[0].T
    frames = lines.view(time, rows, columns, dim).permute(0, 3, 1, 2)
    frames = F.interpolate(frames, size=frame, mode="bicubic")
    return frames.permute(0, 2, 3, 1).reshape(-1, dim)


def test_p9_on_its_own_grid_the_table_is_what_it_is() -> None:
    model = SMALL.build(5)
    assert torch.equal(model.positions.on(SMALL.grid), model.positions.table)
    assert torch.equal(model.positions.table, grid_code(SMALL.grid, SMALL.dim).float())


@pytest.mark.parametrize("grid", [(4, 4, 4), (12, 4, 4), (8, 3, 3), (8, 6, 6), (6, 3, 7)])
def test_p9_on_other_grids_it_is_mapped_and_interpolated(grid: Grid) -> None:
    """Pitfall 9.5: time before space, no antialiasing when a grid shrinks."""
    model = small()
    ours_LD = model.positions.on(grid)
    torch.testing.assert_close(ours_LD, slow_positions(model, grid), rtol=0, atol=1e-6)
    table = model.positions.table.view(*SMALL.grid, -1).permute(0, 3, 1, 2)
    if grid[0] == SMALL.grid[0] and grid[1] < SMALL.grid[1]:
        table = table * model.positions.scale[:, None, None] + model.positions.shift[:, None, None]
        smooth = F.interpolate(table, size=grid[1:], mode="bicubic", antialias=True)
        assert not torch.allclose(ours_LD, smooth.flatten(2).mT.flatten(0, 1), atol=1e-3)


def test_p9_mapping_before_and_after_is_the_same_up_to_rounding() -> None:
    """Pitfall 9.5: weights of an interpolation add up to 1 and the map is affine."""
    model = small()
    ours_LD, scale_D, shift_D = (
        model.positions.on((6, 6, 6)),
        *map(torch.clone, (model.positions.scale, model.positions.shift)),
    )
    nn.init.ones_(model.positions.scale)
    nn.init.zeros_(model.positions.shift)
    late_LD = model.positions.on((6, 6, 6)) * scale_D + shift_D
    torch.testing.assert_close(late_LD, ours_LD, rtol=0, atol=1e-5)


def test_p9_the_class_token_has_its_own_row_whatever_grid_and_map() -> None:
    """It stands at the head of every sequence and is the sum of its token and its position."""
    model, rows = small(), []
    for part in model.blocks:
        part.register_forward_pre_hook(lambda block, given: rows.append(given[0]))
    for frames in (8, 12):
        model(clips(frames=frames), (flux.Config(keep=0.5),))
        nn.init.normal_(model.positions.scale)
    for tokens in rows[0], rows[len(model.blocks)]:
        first_BD = tokens.per_sequence(tokens.x_ND)[:, 0]
        assert torch.equal(first_BD, (model.begin.token + model.begin.position).expand(2, -1))
        assert tokens.num_prefix == 1


def test_p9_kept_tokens_have_the_positions_of_their_places() -> None:
    """Pitfall 9.5: not those of the first k cells of the grid."""
    model, added = small(), []
    model.positions.register_forward_hook(lambda part, given, rows_ND: added.append(rows_ND))
    clip_BCTHW, chain = clips(), model.chain((flux.Config(keep=0.25),))
    tokens = model.embed(clip_BCTHW, chain, None, Trace())
    model.enter(tokens)
    t, y, x = tokens.coord_N3.unbind(dim=1)
    assert torch.equal(added[0], model.positions.on(tokens.grid)[(t * 4 + y) * 4 + x])
    assert not torch.equal(added[0], model.positions.on(tokens.grid)[:32].repeat(2, 1))


def test_a_table_of_one_axis_is_sines_and_then_cosines() -> None:
    table = axis_code(5, 8)
    for n in range(5):
        for i in range(4):
            angle = n * 10000 ** (-i / 4)
            assert table[n, i] == pytest.approx(math.sin(angle))
            assert table[n, 4 + i] == pytest.approx(math.cos(angle))


def test_a_table_of_a_grid_is_time_then_column_then_row() -> None:
    table_LD, grid = grid_code((3, 4, 5), 32), (3, 4, 5)
    for row_D, (t, y, x) in zip(table_LD, cells(grid, 1, CPU).tolist(), strict=True):
        parts = (axis_code(3, 8)[t], axis_code(5, 12)[x], axis_code(4, 12)[y])
        assert torch.equal(row_D, torch.cat(parts))


# P10: the skip of the values.


def attended(layer: fluxvit.SkipAttention, tokens: Tokens) -> Tensor:
    return layer(tokens.x_ND, tokens, None)[0]


def slow_attention(layer: fluxvit.SkipAttention, x_LD: Tensor, skip: bool = True) -> Tensor:
    """Attend as section 3 of the card says, head by head."""
    q_LD, k_LD, v_LD = (x_LD @ layer.qkv.weight.T).chunk(3, dim=1)
    q_LD, k_LD = (
        x / (x.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * norm.weight
        for x, norm in ((q_LD, layer.q_norm), (k_LD, layer.k_norm))
    )
    width, heads = x_LD.shape[1] // layer.heads, []
    for a in range(layer.heads):
        own = slice(a * width, (a + 1) * width)
        weight_LL = (q_LD[:, own] @ k_LD[:, own].T / width**0.5).softmax(dim=1)
        heads.append(weight_LL @ v_LD[:, own])
    out_LD = torch.cat(heads, dim=1)
    if skip:
        out_LD = out_LD + layer.skip_scale * v_LD + layer.skip_shift
    return out_LD @ layer.proj.weight.T + layer.proj.bias


@pytest.mark.parametrize("lengths", [(6, 6), (5,), (1,), (3, 7)])
def test_p10_attention_is_that_of_the_slow_version(lengths: tuple[int, ...]) -> None:
    """Batches of one clip and of one token too, which the official code cannot squeeze."""
    layer, tokens = small().blocks[0].attn, packed(lengths, dim=32)
    slow = [slow_attention(layer, x_LD) for x_LD in tokens.x_ND.split(lengths)]
    torch.testing.assert_close(attended(layer, tokens), torch.cat(slow), rtol=1e-5, atol=1e-5)


def test_p10_without_its_skip_it_is_plain_attention_and_with_1_it_adds_the_values() -> None:
    layer, tokens = small().blocks[0].attn, packed((6,), dim=32)
    plain_LD = slow_attention(layer, tokens.x_ND, skip=False)
    value_LD = tokens.x_ND @ layer.qkv.weight[64:].T
    nn.init.zeros_(layer.skip_shift)
    for scale in (0.0, 1.0):
        nn.init.constant_(layer.skip_scale, scale)
        expected = plain_LD + scale * value_LD @ layer.proj.weight.T
        torch.testing.assert_close(attended(layer, tokens), expected, rtol=1e-5, atol=1e-5)


def test_p10_the_skip_starts_as_the_identity_and_sees_no_neighbour() -> None:
    """Pitfall 9.6: a convolution over places would have nothing to convolve on kept tokens."""
    layer = SMALL.build(5).blocks[0].attn
    out_ND, v_ND = draw(6, 32), draw(6, 32, seed=1)
    assert torch.equal(layer.mix(out_ND, v_ND), out_ND + v_ND)
    layer = small().blocks[0].attn
    changed_ND = v_ND.clone()
    changed_ND[2] += 1
    same_N = (layer.mix(out_ND, v_ND) == layer.mix(out_ND, changed_ND)).all(dim=1)
    assert same_N.tolist() == [True, True, False, True, True, True]


# P11: order, clips, pools.


def test_p11_the_order_of_tokens_does_not_matter() -> None:
    model = small()
    chain = model.chain((flux.Config(keep=0.5),))
    tokens = model.embed(clips(), chain, None, Trace())
    order_L = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    order_N = torch.cat([order_L, order_L + 64])
    mixed = tokens.replace(x_ND=tokens.x_ND[order_N], coord_N3=tokens.coord_N3[order_N])
    ours, theirs = (
        model.pool(model.run_blocks(model.enter(given), chain, Trace()), 1)
        for given in (tokens, mixed)
    )
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)  # sums in another order


def slow_pool(part: fluxvit.Projector, x_LD: Tensor) -> Tensor:
    """Attend with the mean as in section 3 of the card."""
    q_D, width = part.q(part.norm_q(x_LD.mean(dim=0))), x_LD.shape[1] // part.heads
    k_LD, v_LD, heads = part.k(part.norm_k(x_LD)), part.v(part.norm_v(x_LD)), []
    for a in range(part.heads):
        own = slice(a * width, (a + 1) * width)
        heads.append((k_LD[:, own] @ q_D[own] / width**0.5).softmax(dim=0) @ v_LD[:, own])
    return part.proj(torch.cat(heads))


@pytest.mark.parametrize("lengths", [(6, 6), (5,), (1, 9, 4)])
@pytest.mark.parametrize("head", [0, 2])
def test_pools_are_those_of_the_slow_version(lengths: tuple[int, ...], head: int) -> None:
    pool, tokens = small().pool, packed(lengths, dim=32)
    slow = [slow_pool(pool.projectors[head], x_LD) for x_LD in tokens.x_ND.split(lengths)]
    torch.testing.assert_close(pool(tokens, head), torch.stack(slow), rtol=1e-5, atol=1e-5)


def test_pools_give_the_same_for_dense_and_for_ragged_packs() -> None:
    pool, tokens = small().pool, packed((6, 6), dim=32)
    ragged = pool(tokens.replace(layout=Layout.RAGGED))
    torch.testing.assert_close(ragged, pool(tokens), rtol=0, atol=1e-5)


def test_aligned_features_are_of_length_1_and_have_an_aligner_a_head_but_the_first() -> None:
    pool, pooled_BF = small().pool, draw(3, 24)
    assert len(pool.aligners) == 2
    for head in (1, 2):
        aligner = pool.aligners[head - 1]
        expected = F.normalize(aligner.norm(aligner.linear(pooled_BF)), dim=1)
        assert torch.equal(pool.aligned(pooled_BF, head), expected)
        torch.testing.assert_close(expected.norm(dim=1), torch.ones(3))


def test_logits_are_head_norm_and_pool_of_the_same_number() -> None:
    model, clip_BCTHW = small(), clips()
    tokens = encoded(model, clip_BCTHW)
    for head in range(3):
        features_BF = model.head_norm(model.pool.projectors[head](tokens))
        assert torch.equal(model.features(clip_BCTHW, head=head), features_BF)
        assert torch.equal(model(clip_BCTHW, head=head), model.heads[head](features_BF))


@pytest.mark.parametrize(
    ("budget", "head"), [(9999, 0), (3072, 0), (2560, 0), (2559, 1), (1024, 2), (512, 2), (1, 2)]
)
def test_the_head_of_a_budget_is_that_of_the_nearest(budget: int, head: int) -> None:
    """Card 6: 512 tokens have no head of their own."""
    assert fluxvit.Config().head_for(budget) == head


@torch.no_grad()
@pytest.mark.parametrize("chain", [(), (flux.Config(),), (rlt.Config(),), (drop.Config(),)])
def test_clips_of_any_shape_and_a_batch_of_one_work(chain: tuple[Any, ...]) -> None:
    """Pitfall 9.7: B = 1 and clips that are wider than high crash the official code."""
    model = small()
    for shape in ((1, 8, 16, 16), (1, 2, 8, 8), (3, 6, 12, 20)):
        assert model(clips(*shape), chain).isfinite().all()
    both_BK = model(clips(), chain, seeds=(1, 2))
    alone = [model(clips()[i : i + 1], chain, seeds=(i + 1,)) for i in range(2)]
    torch.testing.assert_close(torch.cat(alone), both_BK, rtol=0, atol=1e-5)


# Norms and scales.


def test_embedding_norms_each_patch_before_and_after() -> None:
    """Card 3: contrast of a patch does not matter; every token has about the same length."""
    embed, grid = NormedEmbed(1, 4, 32, 1e-6), (2, 2, 3)
    clip_BCTHW = clips(1, 2, 8, 12)
    x_ND = embed(clip_BCTHW, grid, None)
    torch.testing.assert_close(embed(5 * clip_BCTHW, grid, None), x_ND, rtol=0, atol=1e-5)
    torch.testing.assert_close(x_ND.norm(dim=1), torch.full((12,), 32**0.5), rtol=1e-4, atol=0)
    pixels_NP = embed.tubelets(clip_BCTHW, grid, None).flatten(1)
    pixels_NP = pixels_NP / pixels_NP.square().mean(dim=1, keepdim=True).sqrt()
    bare_ND = pixels_NP @ embed.proj.weight.flatten(1).T + embed.proj.bias
    expected = bare_ND / bare_ND.square().mean(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(x_ND, expected, rtol=0, atol=1e-5)
    index_N = torch.tensor([2, 7])
    torch.testing.assert_close(embed(clip_BCTHW, grid, index_N), x_ND[index_N])


def test_root_mean_square_is_taken_in_single_precision() -> None:
    norm, x_ND = RMSNorm(64, 1e-6), 100 * draw(3, 64)
    half_ND = norm(x_ND.bfloat16())
    assert half_ND.dtype == torch.bfloat16
    assert torch.equal(half_ND, norm(x_ND.bfloat16().float()).bfloat16())


def test_layer_scale_starts_small_or_is_left_out() -> None:
    scale = LayerScale(4, 0.5)
    assert torch.equal(scale(torch.ones(2, 4)), torch.full((2, 4), 0.5))
    assert fluxvit.Config().layer_scale == 1e-5
    assert isinstance(replace(SMALL, layer_scale=0.0).build(5).blocks[0].scale1, nn.Identity)
    near = replace(SMALL, layer_scale=1e-5).build(5).eval()
    tokens = near.enter(near.embed(clips(), near.chain(()), None, Trace()))
    after = near.run_blocks(tokens, near.chain(()), Trace())
    torch.testing.assert_close(after.x_ND, tokens.x_ND, rtol=0, atol=1e-3)


def test_a_class_token_stands_before_every_sequence() -> None:
    part = ClassToken(8)
    nn.init.normal_(part.token)
    tokens = part(packed((3, 5)))
    assert tokens.lengths == (4, 6)
    for row in (0, 4):
        assert torch.equal(tokens.x_ND[row], part.token)


# The host as a whole.


@pytest.mark.parametrize(
    ("size", "with_all", "with_one"), [("small", 28.85, 25.6), ("base", 104.56, 98.0)]
)
def test_sizes_have_the_parameters_of_the_card(size: str, with_all: float, with_one: float) -> None:
    with torch.device("meta"):
        config = fluxvit.Config(**fluxvit.SIZES[size])
        models = [config.build(400), replace(config, budgets=(2048,)).build(400)]
    millions = [sum(w.numel() for w in model.parameters()) / 1e6 for model in models]
    assert millions == [pytest.approx(with_all, abs=0.01), pytest.approx(with_one, abs=0.06)]


@pytest.mark.parametrize("size", fluxvit.SIZES)
def test_p14_parts_cost_what_the_card_says(size: str) -> None:
    """Section 7, with the embedding of all tokens apart; N counts the class token."""
    config = fluxvit.Config(**fluxvit.SIZES[size])
    dim, num_cells = config.dim, 24 * 18 * 18
    for budget in (3072, 2048, 1024, 512):
        chain = (flux.Config(budget=budget),)
        trace = cost.foresee(config, torch.empty(1, 3, 24, 252, 252, device="meta"), chain)
        parts = {name: float(by_clip.sum()) for name, by_clip in cost.macs_by_clip(trace).items()}
        num = budget + 1
        assert parts["attention"] == 12 * (4 * num * dim**2 + 2 * num**2 * dim)
        assert parts["mlp"] == 12 * 8 * num * dim**2
        assert parts["embed"] == num_cells * 588 * dim
        assert parts["pool"] == 2 * num * dim**2 + 2 * num * dim + dim**2 + 768 * dim
        assert parts["select"] == 2 * num_cells * dim


def test_it_is_a_host_like_the_others() -> None:
    assert isinstance(SMALL, HostConfig)
    assert SMALL.grid == (8, 4, 4)
    assert SMALL.host().num_prefix == 1
    assert not SMALL.host().per_frame


def test_heads_pools_and_aligners_come_on_top_of_a_backbone() -> None:
    added = {name.split(".")[0] for name, _ in small().named_parameters() if is_added(name)}
    assert added == {"pool", "heads", "head_norm"}


def test_equal_seeds_make_equal_models_and_reducers_change_no_weight_of_the_host() -> None:
    first, same, other = (SMALL.build(5, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["begin.token"], other["begin.token"])
    learned = SMALL.build(5, (rlt.Config(encode_length=True),))
    assert learned.host.learned == {"rlt"}
    assert all(torch.equal(first[name], learned.state_dict()[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"heads": 3}, "dim=32 must be a multiple of heads=3"),
        ({"pool_heads": 5}, "dim=32 must be a multiple of pool_heads=5"),
        ({"dim": 24}, "dim=24 must be a multiple of 16"),
        ({"budgets": ()}, "budgets=\\(\\) must fall"),
        ({"budgets": (32, 64)}, "budgets=\\(32, 64\\) must fall"),
        ({"budgets": (64, 64)}, "budgets=\\(64, 64\\) must fall"),
    ],
)
def test_a_host_that_cannot_be_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(Mistake, match=what):
        replace(SMALL, **changes)
