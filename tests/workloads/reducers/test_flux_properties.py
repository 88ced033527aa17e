"""Flux' selector: properties P1-P8 of its card, the card's pitfalls, a slow, obvious version."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from scenes import SEEDS, encoded, flat_cells, scene
from torch import Tensor

from workloads import cost
from workloads.mistakes import Mistake
from workloads.models import fluxvit, videomae
from workloads.reducers import flux, rlt, tome
from workloads.reducers.base import At, Chain, Host
from workloads.tokens import Grid, Layout, Tokens, cells
from workloads.trace import Trace

CPU = torch.device("cpu")
HOST = Host(depth=2, dim=6, heads=1, tubelet=1, patch=4, std=(1.0, 1.0, 1.0))
GRIDS = [(2, 3, 5), (6, 4, 4), (8, 4, 4), (10, 3, 3), (12, 2, 5), (20, 3, 3)]
SMALL = fluxvit.Config(
    dim=32, depth=2, heads=2, patch=4, frames=8, size=16, budgets=(64, 32), pool_heads=2,
    features=24, layer_scale=1.0,
)  # fmt: skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(grid: Grid, batch: int = 2, dim: int = 6, seed: int = 0) -> Tensor:
    return draw(batch, grid[0], grid[1] * grid[2], dim, seed=seed)


def chosen(x_BTLD: Tensor, groups: int, count: int) -> Tensor:
    """Return which cells are kept, bool (B, G, F)."""
    score_BGF = flux.importance(x_BTLD, groups)
    kept_BL = torch.zeros(len(x_BTLD), score_BGF[0].numel(), dtype=torch.bool)
    kept_BL = kept_BL.scatter(1, flux.highest(score_BGF, count), True)
    return kept_BL.view(score_BGF.shape)


def embedded(x_BTLD: Tensor, grid: Grid) -> Tokens:
    batch, num = len(x_BTLD), math.prod(grid)
    return Tokens(
        x_ND=x_BTLD.flatten(0, 2),
        coord_N3=cells(grid, batch, CPU),
        size_N=torch.ones(batch * num),
        mass_N=None,
        lengths=(num,) * batch,
        clips=tuple(range(batch)),
        num_prefix=0,
        grid=grid,
        layout=Layout.GRID,
    )


def reduced(x_BTLD: Tensor, grid: Grid, **fields: Any) -> Tokens:
    reducer = flux.Config(**fields).build(HOST)
    reducer.check(grid)
    return reducer.after_embed(embedded(x_BTLD, grid), None)


def slow_cells(x_TLD: Tensor, count: int) -> list[int]:
    """Choose as section 2 of the card says, one frame and place after the other."""
    time, num_places, _ = x_TLD.shape
    groups = 4 if time % 4 == 0 else (1 if time == 2 else 2)
    size, kept = time // groups, []
    for first in range(0, time, size):
        scores = {}
        for t in range(first, first + size):
            later = max(t, first + 1)  # the first frame copies the second
            for place in range(num_places):
                change = (x_TLD[later, place] - x_TLD[later - 1, place]).norm().item()
                scores[t * num_places + place] = change
        kept += sorted(scores, key=lambda flat: (-scores[flat], flat))[:count]
    return sorted(kept)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("keep", [0.1, 0.4, 0.75])
def test_tokens_are_those_of_the_slow_version(grid: Grid, keep: float) -> None:
    for seed in range(3):
        x_BTLD = features(grid, seed=seed).round()  # many ties
        tokens = reduced(x_BTLD, grid, keep=keep)
        count = tokens.lengths[0] // flux.groups_of(grid[0])
        assert flat_cells(tokens) == [slow_cells(x_TLD, count) for x_TLD in x_BTLD]


# P1, P2 and pitfalls 9.3, 9.4: counts.


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_p1_a_clip_keeps_its_budget_but_for_what_groups_cannot_share(
    grid: Grid, official: bool
) -> None:
    num_cells, groups = math.prod(grid), flux.groups_of(grid[0])
    for budget in range(groups, num_cells + 1):
        reducer = flux.Config(budget=budget, official_count=official).build(HOST)
        # The official count is truncated once more by floats: a token a group at most.
        short = 2 * groups - 1 if official else groups - 1
        assert budget - short <= reducer.kept(grid) <= budget
        assert official or reducer.kept(grid) == budget // groups * groups
    assert flux.Config(budget=num_cells).build(HOST).kept(grid) == num_cells


def test_p1_at_the_papers_grids_the_official_count_loses_up_to_four_tokens() -> None:
    """Pitfall 9.3: 1568 tokens and a budget of 1024 leave 1020; 3240 and 512 leave 510."""
    for grid, budget, kept in (((8, 14, 14), 1024, 1020), ((10, 18, 18), 512, 510)):
        assert flux.Config(budget=budget, official_count=True).build(HOST).kept(grid) == kept
        assert flux.Config(budget=budget).build(HOST).kept(grid) == budget
    for time in range(6, 26, 2):
        for side in range(8, 25, 2):
            for budget in (3072, 2048, 1024, 512):
                if budget <= time * side**2:
                    config = flux.Config(budget=budget, official_count=True)
                    assert budget - 4 <= config.build(HOST).kept((time, side, side)) <= budget


def test_p1_all_tokens_stay_where_the_official_budget_is_above_the_grid() -> None:
    assert flux.official_count(64, 100 / 64, 4) == 16
    assert flux.official_count(64, 1.0, 4) == 16


@pytest.mark.parametrize("grid", GRIDS)
def test_p1_p2_each_group_of_each_clip_keeps_as_many(grid: Grid) -> None:
    """Pitfall 9.4: a group that moves more gets no more."""
    x_BTLD = features(grid, batch=3)
    x_BTLD[0, grid[0] // 2 :] = x_BTLD[0, grid[0] // 2]  # the second half stands still
    tokens = reduced(x_BTLD, grid, keep=0.4)
    groups = flux.groups_of(grid[0])
    size, count = math.prod(grid) // groups, tokens.lengths[0] // groups
    assert tokens.layout == Layout.EQUAL
    for flat in flat_cells(tokens):
        assert [sum(cell // size == g for cell in flat) for g in range(groups)] == [count] * groups


def test_p2_groups_are_those_of_the_paper() -> None:
    assert [flux.groups_of(n) for n in (2, 6, 8, 10, 12, 14, 16)] == [1, 2, 4, 2, 4, 2, 4]


def test_class_token_is_kept_and_not_counted() -> None:
    """Pitfall 9.3: counted, it would leave one token of the grid less."""
    model = SMALL.build(5).eval()
    tokens = model.encode(scene(), model.chain((flux.Config(budget=40),)), SEEDS, Trace())
    assert tokens.lengths == (41,) * 3


# P3, P4 and pitfall 9.1: which ones.


@pytest.mark.parametrize("grid", GRIDS)
def test_p3_no_dropped_token_scores_above_a_kept_one_of_its_group(grid: Grid) -> None:
    x_BTLD, groups = features(grid), flux.groups_of(grid[0])
    score_BGF = flux.importance(x_BTLD, groups)
    size = score_BGF.shape[2]
    for count in (1, size // 3, size - 1):
        keep_BGF = chosen(x_BTLD, groups, count)
        lowest_BG = score_BGF.masked_fill(~keep_BGF, torch.inf).amin(dim=2)
        highest_BG = score_BGF.masked_fill(keep_BGF, -torch.inf).amax(dim=2)
        assert (lowest_BG >= highest_BG).all()
        assert keep_BGF[score_BGF > lowest_BG[..., None]].all()


def test_p3_of_equal_scores_the_lower_place_is_kept() -> None:
    """Pitfall 9.3: an unstable sort would decide by chance."""
    assert torch.equal(flux.highest(torch.ones(1, 2, 6), 2), torch.tensor([[0, 1, 6, 7]]))


@pytest.mark.parametrize("grid", GRIDS)
def test_p4_the_first_two_frames_of_a_group_score_alike(grid: Grid) -> None:
    groups = flux.groups_of(grid[0])
    score_BGF = flux.importance(features(grid), groups)
    score_BGTL = score_BGF.unflatten(2, (-1, grid[1] * grid[2]))
    assert torch.equal(score_BGTL[:, :, 0], score_BGTL[:, :, 1])
    assert (score_BGTL > 0).all()


def test_p4_in_groups_of_two_frames_both_keep_the_same_places() -> None:
    keep_BGF = chosen(features((8, 4, 4)), 4, 10)
    first_BGL, second_BGL = keep_BGF.chunk(2, dim=2)
    assert torch.equal(first_BGL, second_BGL)


def test_groups_are_frames_in_a_row_and_share_nothing() -> None:
    """Pitfall 9.1: strided groups, no groups or a first frame of score 0 keep other tokens."""
    grid = (12, 4, 4)
    x_BTLD = features(grid)
    x_BTLD[:, 6:] *= 3  # all that a single group would keep
    ours = chosen(x_BTLD, 4, 12).flatten(1)
    frame_T = torch.arange(12)
    strided = chosen(x_BTLD[:, frame_T.view(3, 4).T.flatten()], 4, 12).flatten(1)
    alone = chosen(x_BTLD, 1, 48).flatten(1)
    score_BGTL = flux.importance(x_BTLD, 4).unflatten(2, (3, -1))
    score_BGTL[:, :, 0] = 0
    without_first = flux.highest(score_BGTL.flatten(2), 12)
    assert not torch.equal(ours, strided)
    assert not torch.equal(ours, alone)
    assert not torch.equal(ours.nonzero()[:, 1].view(2, -1), without_first)
    halves = [keep_BL.view(2, 12, 16)[:, 6:].sum() / keep_BL.sum() for keep_BL in (ours, alone)]
    assert halves[0] == 0.5 < halves[1]


def test_selection_looks_at_normed_tokens_before_positions() -> None:
    """Pitfall 9.2: raw pixels, tokens without their norm, tokens with positions differ."""
    model, clip_BCTHW = SMALL.build(5).eval().requires_grad_(False), scene(batch=2)
    grid = model.host.grid(clip_BCTHW)
    tubelets_NP = model.patch_embed.tubelets(clip_BCTHW, grid, None).flatten(1)
    x_ND = model.patch_embed(clip_BCTHW, grid, None)
    tokens = model.embed(clip_BCTHW, model.chain((flux.Config(keep=0.3),)), SEEDS[:2], Trace())
    num = tokens.lengths[0] // 4

    def kept_by(value_ND: Tensor) -> list[list[int]]:
        x_BTLD = value_ND.view(2, grid[0], grid[1] * grid[2], -1)
        return flux.highest(flux.importance(x_BTLD, 4), num).tolist()

    ours = flat_cells(tokens)
    assert ours == kept_by(x_ND)
    bare_ND = torch.nn.functional.linear(tubelets_NP, model.patch_embed.proj.weight.flatten(1))
    for other_ND in (tubelets_NP, bare_ND, x_ND + model.positions.on(grid).repeat(2, 1)):
        assert ours != kept_by(other_ND)


# P5: identity and nesting.


def test_p5_a_budget_of_the_whole_grid_is_the_dense_model_bit_for_bit() -> None:
    model, clip_BCTHW = SMALL.build(5).eval(), scene()
    dense_BK = model(clip_BCTHW, ())
    for config in (flux.Config(budget=128), flux.Config(keep=1.0), flux.Config.off()):
        assert torch.equal(model(clip_BCTHW, (config,)), dense_BK)


@pytest.mark.parametrize("grid", GRIDS)
def test_p5_kept_sets_are_nested(grid: Grid) -> None:
    x_BTLD, groups = features(grid).round(), flux.groups_of(grid[0])
    size = math.prod(grid) // groups
    nested = [chosen(x_BTLD, groups, count) for count in range(1, size + 1)]
    for smaller, larger in itertools.pairwise(nested):
        assert (larger | ~smaller).all()


# P6-P8: what changes the choice and what does not.


def orthogonal(dim: int) -> Tensor:
    return torch.linalg.qr(draw(dim, dim, seed=9)).Q


@pytest.mark.parametrize("grid", GRIDS)
def test_p6_the_choice_ignores_scale_rotation_and_what_a_place_always_has(grid: Grid) -> None:
    x_BTLD, groups = features(grid), flux.groups_of(grid[0])
    count = math.prod(grid) // groups // 3 // 2 * 2  # even: the first two frames tie
    ours = chosen(x_BTLD, groups, count)
    turned = chosen(7 * x_BTLD @ orthogonal(6), groups, count)
    # Pairs of first frames tie exactly before and after, so rounding cannot part them.
    assert torch.equal(ours, turned)
    place = features(grid, seed=5)[:, :1]
    x_BGTLD = x_BTLD.unflatten(1, (groups, -1)) + torch.arange(groups).view(-1, 1, 1, 1)
    moved = (x_BGTLD + place[:, None]).flatten(1, 2)
    assert torch.equal(ours, chosen(moved, groups, count))


def test_p6_the_choice_moves_with_groups_and_with_places() -> None:
    x_BTLD = features((12, 4, 4))
    ours = chosen(x_BTLD, 4, 12)
    order_G = torch.tensor([2, 0, 3, 1])
    swapped = x_BTLD.unflatten(1, (4, 3))[:, order_G].flatten(1, 2)
    assert torch.equal(chosen(swapped, 4, 12), ours[:, order_G])
    order_L = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    score = flux.importance(x_BTLD[:, :, order_L], 4).unflatten(2, (3, 16))
    expected = flux.importance(x_BTLD, 4).unflatten(2, (3, 16))[..., order_L]
    assert torch.equal(score, expected)


def test_p6_time_backwards_is_another_choice() -> None:
    x_BTLD = features((12, 4, 4))
    back = chosen(x_BTLD.flip(1), 4, 12).unflatten(2, (3, 16)).flip(1, 2).flatten(2)
    assert not torch.equal(chosen(x_BTLD, 4, 12), back)


def test_p7_a_cut_between_groups_changes_nothing() -> None:
    x_BTLD = features((12, 4, 4))
    cut = x_BTLD.clone()
    cut[:, 6:] += 100 * draw(6, seed=3)
    assert torch.equal(chosen(x_BTLD, 4, 12), chosen(cut, 4, 12))


def test_p7_behind_a_cut_within_a_group_the_whole_frame_is_kept() -> None:
    x_BTLD = draw(1, 1, 16, 6).repeat(1, 12, 1, 1)
    x_BTLD[:, 5:] = draw(1, 1, 16, 6, seed=1)
    keep_TL = chosen(x_BTLD, 4, 16).view(12, 16)
    assert keep_TL[5].all()
    assert not keep_TL[3:5].any()


def test_p8_what_moves_is_kept_before_what_stands_still() -> None:
    """A textured ground without noise; only groups with fewer moving tokens show some of it."""
    x_BTLD = draw(1, 1, 64, 6).repeat(1, 12, 1, 1)
    for t in range(12):
        x_BTLD[0, t, 5 * t : 5 * t + 4] = 3.0
    score_BGF = flux.importance(x_BTLD, 4)
    for count in (4, 16, 40, 100):
        keep_BGF = chosen(x_BTLD, 4, count)
        moving_BG = (score_BGF > 0).sum(dim=2).clamp(max=count)
        assert torch.equal((keep_BGF & (score_BGF > 0)).sum(dim=2), moving_BG)


# In a model.


def test_places_and_pixels_of_the_kept_tokens_stay_their_own() -> None:
    grid = (8, 4, 4)
    x_BTLD = features(grid)
    tokens = reduced(x_BTLD, grid, keep=0.5)
    flat_N = torch.tensor(flat_cells(tokens)) + torch.tensor([[0], [128]])
    assert torch.equal(tokens.x_ND, x_BTLD.flatten(0, 2)[flat_N.flatten()])
    assert flat_cells(tokens) == [sorted(flat) for flat in flat_cells(tokens)]
    assert tokens.size_N.eq(1).all()


def test_ranking_is_in_single_precision_and_without_gradient() -> None:
    x_BTLD = features((8, 4, 4)).bfloat16().requires_grad_()
    score_BGF = flux.importance(x_BTLD, 4)
    assert score_BGF.dtype == torch.float32
    assert not score_BGF.requires_grad


def test_gradient_reaches_the_kept_tokens_alone() -> None:
    x_BTLD = features((8, 4, 4)).requires_grad_()
    tokens = reduced(x_BTLD, (8, 4, 4), keep=0.5)
    tokens.x_ND.sum().backward()
    assert x_BTLD.grad.sum() == len(tokens.x_ND) * 6


def test_clips_stay_equal_but_their_frames_do_not() -> None:
    joint, by_frame = HOST, dataclasses.replace(HOST, per_frame=True)
    assert Chain((flux.Config(),), joint).layout == Layout.EQUAL
    assert Chain((flux.Config(),), by_frame).layout == Layout.RAGGED


def test_after_rlt_there_are_no_frames_to_compare() -> None:
    with pytest.raises(Mistake, match="flux at block 0 needs the full grid, rlt leaves them"):
        Chain((rlt.Config(), flux.Config()), HOST)
    assert Chain((flux.Config(), tome.Config()), HOST).layout == Layout.EQUAL


def test_its_cost_is_two_operations_a_channel_and_all_tokens_are_embedded() -> None:
    """Pitfall 9.10: a denser grid is not free, though the blocks see the same budget."""
    assert flux.Config().build(HOST).macs(At.EMBED, 100) == 2 * 100 * 6
    model = SMALL.build(5).eval()
    few, many = (cost.macs(model, scene(frames=n), (flux.Config(budget=64),)) for n in (8, 16))
    assert [few[part] for part in ("attention", "mlp", "pool")] == [
        many[part] for part in ("attention", "mlp", "pool")
    ]
    assert many["embed"] == 2 * few["embed"] == 256 * 32 * 48
    assert many["select"] == 2 * few["select"] == 2 * 256 * 32


# Pitfall 9.7 and other bad input.


@pytest.mark.parametrize(
    ("fields", "grid", "what"),
    [
        ({}, (4, 4, 4), "4 frames of tokens cannot be 4 groups of two or more"),
        ({}, (7, 4, 4), "7 frames of tokens cannot be 2 groups of two or more"),
        ({}, (1, 4, 4), "1 frames of tokens cannot be 2 groups of two or more"),
        ({"groups": 3}, (8, 4, 4), "8 frames of tokens cannot be 3 groups of two or more"),
        ({"budget": 200}, (8, 4, 4), "budget=200 is more than the 128 tokens of a clip"),
        ({"budget": 3}, (8, 4, 4), "budget=3 leaves nothing to each of 4 groups"),
    ],
)
def test_a_grid_that_it_cannot_work_on_is_refused(
    fields: dict[str, int], grid: Grid, what: str
) -> None:
    with pytest.raises(Mistake, match=what) as caught:
        flux.Config(**fields).build(HOST).check(grid)
    assert caught.value.remedy


def test_a_refused_grid_is_refused_before_any_work_and_only_with_a_selection() -> None:
    model = SMALL.build(5).eval()
    with pytest.raises(Mistake, match="4 frames of tokens cannot be 4 groups"):
        model(scene(frames=4), (flux.Config(),))
    for chain in ((), (flux.Config.off(),), (flux.Config(groups=2),)):
        assert model(scene(frames=4), chain).isfinite().all()


@pytest.mark.parametrize("official", [False, True])
def test_where_all_tokens_stay_any_number_of_frames_will_do(official: bool) -> None:
    for grid in ((4, 4, 4), (7, 3, 3), (1, 2, 3)):
        config = {"budget": math.prod(grid), "official_count": official}
        tokens = reduced(features(grid), grid, **config)
        assert tokens.lengths == (math.prod(grid),) * 2
        assert tokens.layout == Layout.GRID


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"keep": 0.0}, "keep=0.0 must be in"),
        ({"keep": 1.5}, "keep=1.5 must be in"),
        ({"keep": math.nan}, "keep=nan must be in"),
        ({"budget": -1}, "budget=-1, groups=0 must be 0 or more"),
        ({"groups": -1}, "budget=0, groups=-1 must be 0 or more"),
        ({"keep": 0.3, "budget": 64}, "keep=0.3 and budget=64 both say how many"),
    ],
)
def test_a_config_that_says_nothing_or_two_things_is_refused(
    fields: dict[str, Any], what: str
) -> None:
    with pytest.raises(Mistake, match=what) as caught:
        flux.Config(**fields)
    assert caught.value.remedy


def test_a_share_leaves_each_group_a_token_at_least() -> None:
    assert reduced(features((8, 2, 2)), (8, 2, 2), keep=0.01).lengths == (4, 4)


def test_other_hosts_can_be_selected_too() -> None:
    host = videomae.Config(dim=24, depth=2, heads=2, patch=4, frames=16, size=16)
    tokens = encoded(host.build(5).eval(), scene(frames=16), (flux.Config(keep=0.25),))
    assert tokens.lengths == (32,) * 3
