"""InTI-style interpolation: the properties that its method card numbers (card 9), and its refusals.

Legend: B clips, T frames, F pairs of them, M tokens of a frame, L its places, D width.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from packing import draw
from scenes import scene, still
from torch import Tensor, nn
from torch.nn import functional as F

from workloads import cost, optim
from workloads.finetune import adopt, freeze
from workloads.mistakes import Mistake
from workloads.models import clip, fluxvit, videomae
from workloads.reducers import drop, inti, rlt, tome
from workloads.reducers.base import Chain
from workloads.tokens import Layout, Tokens
from workloads.trace import Trace
from workloads.vit import VideoTransformer, is_added

FRAMES = clip.Config(dim=16, depth=4, heads=2, patch=4, frames=8, size=12)
JOINT = videomae.Config(dim=16, depth=4, heads=2, patch=4, frames=16, size=12)
HOSTS = {"frames": FRAMES, "over-time": replace(FRAMES, adapters="space_time"), "joint": JOINT}
ONE = inti.Config(halve_after=(1,))
SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(inti.SCALES, n)]


def shaken(host: Any, *configs: Any) -> VideoTransformer:
    """Return a model in which nothing is zero any more: networks weigh as if they were trained."""
    model = host.build(5, configs).eval().requires_grad_(False)
    for i, weight in enumerate(model.parameters()):
        weight.add_(0.3 * draw(*weight.shape, seed=i))
    return model


def weigher(dim: int = 16, scales: tuple[str, ...] = inti.SCALES) -> inti.Weigher:
    net = inti.Weigher(dim, scales, torch.Generator().manual_seed(0)).requires_grad_(False)
    for i, weight in enumerate(net.parameters()):
        weight.add_(0.5 * draw(*weight.shape, seed=i))
    return net


def full(host: Any, batch: int = 2, seed: int = 0) -> Tokens:
    """Return random tokens as they enter a block of a host."""
    model = host.build(5)
    clip_BCTHW = scene(batch, frames=host.frames, height=host.size, width=host.size)
    tokens = model.enter(model.embed(clip_BCTHW, model.chain(()), None, Trace()))
    return tokens.replace(x_ND=draw(*tokens.x_ND.shape, seed=seed))


def halved(tokens: Tokens, host: Any, net: nn.Module | None, config: Any = ONE) -> Tokens:
    learned = None if net is None else nn.ModuleList([net])
    return config.build(host.host((config,))).after_block(tokens, 0, learned)


def by_pair(x_ND: Tensor, num_frames: int = 8, batch: int = 2) -> Tensor:
    """View packed tokens as (B, F, 2, M, D)."""
    return x_ND.view(batch, num_frames // 2, 2, -1, x_ND.shape[-1])


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Any:
    return HOSTS[request.param]


# Card 9.1: shapes.


@torch.no_grad()
@pytest.mark.parametrize(
    ("after", "left"), [((1,), 4), ((4,), 4), ((1, 3), 2), ((2, 2), 2), ((1, 1, 1), 1)]
)
def test_p1_each_module_halves_the_frames_and_nothing_else(
    host: Any, after: tuple[int, ...], left: int
) -> None:
    model, tokens = shaken(host, config := inti.Config(halve_after=after)), full(host)
    ours = model.run_blocks(tokens, model.chain((config,)), Trace())
    share = 8 // left
    assert ours.layout == Layout.GRID
    assert ours.grid == (left, 3, 3)
    assert sum(ours.lengths) == len(ours.x_ND) == len(tokens.x_ND) // share
    assert ours.x_ND.shape[1] == tokens.x_ND.shape[1]
    frames = left if model.host.per_frame else 1
    assert ours.clips == (0,) * frames + (1,) * frames
    assert torch.equal(ours.size_N, torch.full_like(ours.size_N, share))
    assert {*map(tuple, ours.coord_N3.tolist())} <= {*map(tuple, tokens.coord_N3.tolist())}
    assert ours.coord_N3[:, 0].max() == left - 1


@torch.no_grad()
def test_p1_blocks_see_the_frames_that_the_schedule_says(host: Any) -> None:
    model, config = shaken(host, c := inti.Config(halve_after=(1, 3))), c
    clip_BCTHW = scene(frames=host.frames, height=12, width=12)
    _, trace = model.traced(clip_BCTHW, (config,))
    seen = [sum(v.lengths) - len(v.lengths) * v.num_prefix for v in trace.visits]
    parts = [(v.part, v.layer) for v in trace.visits]
    for layer, times in enumerate((8, 4, 4, 2)):
        assert seen[parts.index(("attention", layer))] == 3 * times * 9
        assert seen[parts.index(("mlp", layer))] == 3 * times * 9


@pytest.mark.parametrize(("frames", "after"), [(7, (1,)), (6, (1, 2)), (4, (1, 1, 2)), (1, (1,))])
def test_p1_frames_that_cannot_be_halved_are_refused(frames: int, after: tuple[int, ...]) -> None:
    model = FRAMES.build(5, (inti.Config(halve_after=after),))
    with pytest.raises(Mistake, match=rf"inti: {frames} frames .* cannot be halved {len(after)}"):
        model(draw(1, 3, frames, 12, 12))


# Card 9.2: weights.


@torch.no_grad()
def test_p2_weights_are_positive_sum_to_1_and_differ_by_place() -> None:
    first, later = by_pair(draw(2 * 8 * 10, 16)).unbind(dim=2)
    logits_BFM2 = weigher()(first, later, 1, (8, 3, 3))
    assert logits_BFM2.shape == (2, 4, 10, 2)
    weight_BFM2 = logits_BFM2.softmax(dim=-1)
    assert (weight_BFM2 > 0).all()
    torch.testing.assert_close(weight_BFM2.sum(dim=-1), torch.ones(2, 4, 10))
    assert (weight_BFM2.std(dim=2) > 1e-3).all()
    mixed = weight_BFM2[..., :1] * first + weight_BFM2[..., 1:] * later
    ours = inti.interpolate(first, later, logits_BFM2)
    torch.testing.assert_close(ours, mixed, rtol=0, atol=1e-5)  # the difference form rounds apart


# Card 9.3: identity.


@torch.no_grad()
@pytest.mark.parametrize("weights", inti.WEIGHTS)
def test_p3_equal_frames_pass_through_bit_for_bit(host: Any, weights: Any) -> None:
    tokens = full(host)
    pairs = by_pair(tokens.x_ND)
    same = tokens.replace(x_ND=torch.stack([pairs[:, :, 0]] * 2, dim=2).view_as(tokens.x_ND))
    ours = halved(same, host, weigher(), replace(ONE, weights=weights))
    assert torch.equal(ours.x_ND, pairs[:, :, 0].flatten(0, 2))


@torch.no_grad()
@pytest.mark.parametrize("after", [(1,), (2, 2), (1, 2, 3)])
def test_p3_a_still_clip_is_the_clip_of_fewer_frames(after: tuple[int, ...]) -> None:
    model = shaken(FRAMES, config := inti.Config(halve_after=after))
    clip_BCTHW = still(frames=8, height=12, width=12)
    few_BK = model(clip_BCTHW[:, :, : 8 // 2 ** len(after)], ())
    torch.testing.assert_close(model(clip_BCTHW, (config,)), few_BK, rtol=0, atol=1e-6)


# Card 9.4: the beginning.


@torch.no_grad()
@pytest.mark.parametrize("scales", SUBSETS, ids="+".join)
def test_p4_training_starts_at_the_plain_mean_of_pairs(host: Any, scales: tuple[str, ...]) -> None:
    config = replace(ONE, scales=scales)
    net = config.parameters(16, (8, 3, 3), torch.Generator().manual_seed(0))
    assert isinstance(net, nn.ModuleList)
    tokens = full(host)
    ours = halved(tokens, host, net[0], config)
    torch.testing.assert_close(
        ours.x_ND, by_pair(tokens.x_ND).mean(dim=2).flatten(0, 2), rtol=0, atol=1e-6
    )
    clip_BCTHW = scene(frames=host.frames, height=12, width=12)
    model = host.build(5, (config,)).eval()
    assert torch.equal(model(clip_BCTHW), model(clip_BCTHW, (replace(config, weights="mean"),)))


def test_p4_the_last_layer_alone_begins_at_zero() -> None:
    net = inti.Weigher(64, inti.SCALES, torch.Generator().manual_seed(0))
    zero = {name for name, weight in net.named_parameters() if not weight.any()}
    assert {name for name in zero if name.endswith("weight")} == {"last.weight"}


# Card 9.5: convexity.


@torch.no_grad()
def test_p5_each_channel_lies_between_those_of_the_two_frames(host: Any) -> None:
    tokens = full(host)
    first, later = by_pair(tokens.x_ND).unbind(dim=2)
    ours = halved(tokens, host, weigher()).x_ND.view_as(first)
    assert (ours >= torch.minimum(first, later) - 1e-6).all()
    assert (ours <= torch.maximum(first, later) + 1e-6).all()


# Card 9.6: locality in time, and in the batch.


@torch.no_grad()
@pytest.mark.parametrize("pair", range(4))
def test_p6_a_pair_changes_its_own_frame_alone(host: Any, pair: int) -> None:
    tokens, net = full(host), weigher()
    other = tokens.x_ND.clone()
    by_pair(other)[1, pair] += 1.0
    ours, changed = (
        halved(tokens.replace(x_ND=x), host, net).x_ND.view(2, 4, -1, 16)
        for x in (tokens.x_ND, other)
    )
    moved_BF = (ours != changed).any(dim=-1).any(dim=-1)
    assert moved_BF.nonzero().tolist() == [[1, pair]]


# Card 9.7: what the weights look at.


@pytest.mark.parametrize("scales", SUBSETS, ids="+".join)
@pytest.mark.parametrize("num_prefix", [0, 1])
def test_p7_weights_depend_on_what_their_scales_see(
    scales: tuple[str, ...], num_prefix: int
) -> None:
    """Support of the Jacobian, on frames of 4 x 5 places with or without a class token."""
    rows, columns, net = 4, 5, weigher(8, scales)
    num = num_prefix + rows * columns
    first, later = (draw(1, 1, num, 8, seed=i).requires_grad_() for i in (0, 1))
    logits_M2 = net(first, later, num_prefix, (2, rows, columns))[0, 0]
    for m in range(num):
        gradients = torch.autograd.grad(logits_M2[m, 0], (first, later), retain_graph=True)
        sees = [{*g[0, 0].any(dim=-1).nonzero().flatten().tolist()} for g in gradients]
        assert sees[0] == sees[1] == expected_support(m, num_prefix, rows, columns, scales)


def expected_support(
    m: int, num_prefix: int, rows: int, columns: int, scales: tuple[str, ...]
) -> set[int]:
    places = {*range(num_prefix, num_prefix + rows * columns)}
    seen = {m} if "point" in scales else set()
    if "local" in scales and m in places:
        y, x = divmod(m - num_prefix, columns)
        around = itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1))
        seen |= {
            num_prefix + v * columns + u for v, u in around if 0 <= v < rows and 0 <= u < columns
        }
    return seen | places if "global" in scales else seen


# Card 9.8: positions.


@torch.no_grad()
def test_p8_positions_come_out_as_they_went_in() -> None:
    first, later = by_pair(draw(2 * 8 * 9, 16)).unbind(dim=2)
    table_MD, logits_BFM2 = draw(9, 16, seed=5), draw(2, 4, 9, 2, seed=6)
    ours = inti.interpolate(first + table_MD, later + table_MD, logits_BFM2) - table_MD
    torch.testing.assert_close(ours, inti.interpolate(first, later, logits_BFM2), rtol=0, atol=1e-5)


# Card 9.9: swapping. Ours is the ordered concatenation: it knows which frame comes first.


@torch.no_grad()
def test_p9_a_preference_for_one_frame_does_not_move_with_its_contents() -> None:
    first, later = by_pair(draw(2 * 8 * 9, 16)).unbind(dim=2)
    net = weigher()
    net.last.weight.zero_()
    net.last.bias.copy_(torch.tensor([1.5, -1.5]))
    forwards, backwards = net(first, later, 0, (8, 3, 3)), net(later, first, 0, (8, 3, 3))
    assert torch.equal(forwards, backwards)  # logits (l, -l) whatever is shown
    assert not torch.allclose(
        inti.interpolate(first, later, forwards), inti.interpolate(later, first, backwards)
    )


@torch.no_grad()
def test_p9_swapped_weights_of_swapped_frames_give_the_same() -> None:
    first, later = by_pair(draw(2 * 8 * 9, 16)).unbind(dim=2)
    logits_BFM2 = draw(2, 4, 9, 2, seed=3)
    ours = inti.interpolate(first, later, logits_BFM2)
    swapped = inti.interpolate(later, first, logits_BFM2.flip(-1))
    torch.testing.assert_close(swapped, ours, rtol=0, atol=1e-6)


# Card 9.10: extremes and gradients.


def test_p10_a_clear_preference_takes_the_first_frame() -> None:
    first, later = draw(1, 1, 4, 16), draw(1, 1, 4, 16, seed=1)
    logits = torch.tensor([30.0, 0.0]).expand(1, 1, 4, 2)
    torch.testing.assert_close(inti.interpolate(first, later, logits), first)


def test_p10_the_gradient_of_the_logits_is_that_of_the_formula() -> None:
    first, later = draw(1, 1, 4, 16), draw(1, 1, 4, 16, seed=1)
    logits, out = draw(1, 1, 4, 2, seed=2).requires_grad_(), draw(1, 1, 4, 16, seed=3)
    (ours,) = torch.autograd.grad(inti.interpolate(first, later, logits), logits, out)
    a, b = logits.detach().softmax(dim=-1).unbind(dim=-1)
    expected = a * b * (out * (first - later)).sum(dim=-1)
    torch.testing.assert_close(ours, torch.stack([expected, -expected], dim=-1))


def test_p10_equal_frames_give_exactly_no_gradient() -> None:
    first, logits = draw(1, 1, 4, 16), draw(1, 1, 4, 2).requires_grad_()
    total = inti.interpolate(first, first.clone(), logits).square().sum()
    assert not torch.autograd.grad(total, logits)[0].any()


# Card 9.11: what is learned.


@pytest.mark.parametrize("adapters", ["space", "space_time"])
def test_p11_networks_and_adapters_learn_and_the_backbone_stays(adapters: Any) -> None:
    host = replace(FRAMES, adapters=adapters)
    model = host.build(5, (inti.Config(halve_after=(1, 2)),)).train()
    freeze(model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer = optim.build(model, optim.Config(lr=1e-2))
    clip_BCTHW, target_B = scene(frames=8, height=12, width=12), torch.tensor([0, 1, 2])
    for _ in range(2):  # at the first step only what comes after the zeros has a gradient
        F.cross_entropy(model(clip_BCTHW), target_B).backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        optim.step(model, optimizer, 1e-2, 1.0)
    for name, gradient in gradients.items():
        if is_added(name):
            assert gradient is not None, name
            assert gradient.any(), name
        else:
            assert gradient is None, name
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) != is_added(name), name


def test_p11_networks_take_over_weights_of_another_stage() -> None:
    trained = shaken(FRAMES, inti.Config(halve_after=(1,)))
    model = FRAMES.build(5, (inti.Config(halve_after=(3,)),))
    assert adopt(model, trained.state_dict()) == ()


# Card 9.12: cost.

QUARTER = [(12, (3,)), (24, (6,)), (24, (8, 20)), (24, (9, 18)), (24, (10, 16)), (24, (12, 12))]
QUARTER += [(12, (4, 10)), (12, (5, 8)), (12, (6, 6))]
OTHERS = [(12, (6,), 1 / 4), (12, (4, 8), 5 / 12), (12, (3, 6), 1 / 2), (12, (3, 6, 9), 17 / 32)]


def saved(depth: int, after: tuple[int, ...], **changes: Any) -> tuple[float, float, float]:
    """Return the share of the blocks' cost that is saved, that of g, and all of it with g."""
    large = clip.SIZES["large14"] | {"depth": depth}
    config = inti.Config(halve_after=after, **changes)
    with torch.device("meta"):
        model = clip.Config(**large).build(400, (config,))
        clip_BCTHW = torch.empty(1, 3, 8, 224, 224)
        dense, ours = cost.macs(model, clip_BCTHW, ()), cost.macs(model, clip_BCTHW)
    blocks, left = (macs["attention"] + macs["mlp"] for macs in (dense, ours))
    assert ours["embed"] == dense["embed"]
    return 1 - left / blocks, ours["match"] / dense["total"], 1 - ours["total"] / dense["total"]


@pytest.mark.parametrize(
    ("depth", "after", "share"), [*((*case, 3 / 8) for case in QUARTER), *OTHERS]
)
def test_p12_blocks_cost_what_the_schedule_says(
    depth: int, after: tuple[int, ...], share: float
) -> None:
    blocks, match, total = saved(depth, after)
    assert blocks == pytest.approx(share, abs=1e-12)
    assert 0 < match < 0.005
    assert total == pytest.approx(share, abs=0.005)


def test_p12_one_halving_of_large14_costs_the_networks_share_of_the_card() -> None:
    """8 frames: 0.37 GMACs of 647."""
    with torch.device("meta"):
        host = clip.Config(**clip.SIZES["large14"])
        model = host.build(400, (inti.Config(halve_after=(6,)),))
        macs = cost.macs(model, torch.empty(1, 3, 8, 224, 224))
    assert macs["match"] / 1e9 == pytest.approx(0.37, abs=0.005)


def test_p12_the_parameters_of_a_network_are_those_of_the_card() -> None:
    for dim, width in ((768, 96), (1024, 128)):
        net = inti.Weigher(dim, inti.SCALES, torch.Generator())
        count = 2 * dim + dim * width + width + 3 * (2 * width**2 + width)
        count += 18 * width + 2 * width + 2 * width + 2
        assert sum(weight.numel() for weight in net.parameters()) == count


@pytest.mark.parametrize("weights", ["mean", "first"])
def test_p12_controls_save_the_same_and_have_no_network(weights: str) -> None:
    assert saved(12, (3,), weights=weights)[:2] == (saved(12, (3,))[0], 0)


def test_p12_in_a_joint_host_the_quadratic_part_falls_to_a_quarter() -> None:
    with torch.device("meta"):
        model = videomae.Config(**videomae.SIZES["base"]).build(400, (inti.Config(),))
        clip_BCTHW = torch.empty(1, 3, 16, 224, 224)
        dense, ours = cost.macs(model, clip_BCTHW, ()), cost.macs(model, clip_BCTHW)
    assert 1 - ours["mlp"] / dense["mlp"] == pytest.approx(3 / 8, abs=1e-12)
    assert 1 - ours["attention"] / dense["attention"] > 3 / 8


def test_p12_earlier_halving_costs_less() -> None:
    """The card says wall time, which `benchmarks.reduction` takes: a busy machine has no order."""
    totals = [saved(12, (after,))[2] for after in (1, 3, 6, 9, 12)]
    assert totals == sorted(totals, reverse=True)


# Card 9.13: attention over time.


@torch.no_grad()
@pytest.mark.parametrize("after", [(1,), (1, 2), (2, 2)])
def test_p13_over_time_a_video_does_not_depend_on_its_batch_mate(after: tuple[int, ...]) -> None:
    model = shaken(HOSTS["over-time"], config := inti.Config(halve_after=after))
    clip_BCTHW = scene(2, frames=8, height=12, width=12)
    both_BK, seen = model(clip_BCTHW, (config,)), []
    other_BCTHW = clip_BCTHW.clone()
    other_BCTHW[1] = draw(3, 8, 12, 12)
    torch.testing.assert_close(model(other_BCTHW, (config,))[0], both_BK[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(model(clip_BCTHW[:1], (config,))[0], both_BK[0], rtol=0, atol=1e-5)
    _, trace = model.traced(clip_BCTHW, (config,))
    # Sequences over time are as long as there are frames left.
    for layer in range(4):
        visits = [v for v in trace.visits if (v.part, v.layer) == ("adapt", layer)]
        left = 8 // 2 ** sum(done <= layer for done in after)
        seen.append({*visits[0].lengths} == {left})
    assert all(seen)


# Card 9.14: commutation.


@torch.no_grad()
def test_p14_the_mean_after_a_linear_block_is_the_block_of_the_mean(host: Any) -> None:
    tokens, weight_DD = full(host), draw(16, 16, seed=9)
    config = replace(ONE, weights="mean")
    after = halved(tokens.replace(x_ND=tokens.x_ND @ weight_DD), host, None, config).x_ND
    before = halved(tokens, host, None, config).x_ND @ weight_DD
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


# Controls, and what is refused.


@torch.no_grad()
def test_frame_dropping_takes_the_first_of_each_pair(host: Any) -> None:
    tokens = full(host)
    ours = halved(tokens, host, None, replace(ONE, weights="first"))
    assert torch.equal(ours.x_ND, by_pair(tokens.x_ND)[:, :, 0].flatten(0, 2))
    assert torch.equal(ours.size_N, torch.ones_like(ours.size_N))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"halve_after": (0,)}, r"halve_after=\(0,\) must be rising numbers of blocks"),
        ({"halve_after": (3, 1)}, "must be rising"),
        ({"halve_after": (1.5,)}, r"halve_after=\(1.5,\) must be rising numbers of blocks"),
        ({"weights": "hard"}, r"weights='hard'\n  one of softmax, mean, first"),
        ({"scales": ()}, r"scales=\(\) must be one or more of point, local, global"),
        ({"scales": ("point", "far")}, r"scales=\('point', 'far'\) must be one or more"),
    ],
)
def test_knobs_without_meaning_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        inti.Config(**fields)


def test_a_schedule_longer_than_the_model_is_deep_is_refused() -> None:
    with pytest.raises(Mistake, match=r"halve_after=\(3, 5\), but the model has 4 blocks\n  a qua"):
        FRAMES.build(5, (inti.Config(halve_after=(3, 5)),)).chain(None)


def test_a_class_token_of_the_whole_clip_is_refused() -> None:
    host = fluxvit.Config(dim=32, depth=4, heads=2, patch=4, frames=8, size=16)
    with pytest.raises(Mistake, match="belongs to no frame"):
        Chain((ONE,), host.host((ONE,)))


def test_learned_weights_need_a_model_that_learned_them() -> None:
    model, clip_BCTHW = FRAMES.build(5), draw(1, 3, 8, 12, 12)
    with pytest.raises(Mistake, match="this model has no networks for them"):
        model(clip_BCTHW, (ONE,))
    model(clip_BCTHW, (replace(ONE, weights="mean"),))


@pytest.mark.parametrize(
    "other",
    [inti.Config(halve_after=(1, 2)), inti.Config(halve_after=(1,), scales=("point",))],
)
def test_other_networks_than_those_that_were_trained_are_refused(other: inti.Config) -> None:
    with pytest.raises(Mistake, match="not what this model was trained with"):
        FRAMES.build(5, (ONE,))(draw(1, 3, 8, 12, 12), (other,))


@pytest.mark.parametrize("other", [rlt.Config(), drop.Config(), tome.Config(r=2)])
def test_half_the_frames_of_an_irregular_grid_are_refused(host: Any, other: Any) -> None:
    with pytest.raises(Mistake, match="inti at block 0 needs the full grid"):
        Chain((other, ONE), host.host((ONE,)))


@torch.no_grad()
def test_merging_after_the_last_halving_is_legal() -> None:
    chain = (ONE, tome.Config(counts=(0, 0, 2)))
    tokens = shaken(FRAMES, ONE).encode(
        scene(2, frames=8, height=12, width=12),
        Chain(chain, FRAMES.host((ONE,))),
        None,
        Trace(),
    )
    assert tokens.lengths == (10 - 2,) * 8
    assert tokens.size_N.sum() == 2 * 8 * 10  # class tokens stand for two frames each, too
