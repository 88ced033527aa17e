"""ToMe: properties P13-P15 of its method card, pitfalls of copies, and a slow, obvious version."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scenes import encoded, scene, still
from torch import Tensor
from torch.nn import functional as F

from workloads import merging
from workloads.blocks import Attention
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import tome
from workloads.reducers.base import Seen
from workloads.tokens import Layout, Tokens, sum_by_clip
from workloads.vit import VideoTransformer

# Tokens, class token, distillation token: odd and even numbers, and the fewest there can be.
SHAPES = [(n, c, d) for n in (8, 13, 20) for c, d in ((0, 0), (1, 0), (1, 1))] + [(2, 0, 0)]
HOST = videomae.Config(
    dim=24, depth=3, heads=2, tubelet=2, patch=4, frames=8, size=16, positions="flat"
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sizes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def groups_of(plan: merging.Plan) -> list[list[int]]:
    """Return the input tokens of each output of the first sequence, in order."""
    return [row.nonzero().flatten().tolist() for row in merging.sources([plan])[0]]


def slow_groups(metric_LE: Tensor, r: int, class_token: int, distill: int) -> list[list[int]]:
    """Match and merge as in section 3.1 of the paper, one proposal after the other."""
    unit_LE = (metric_LE / metric_LE.norm(dim=1, keepdim=True)).tolist()
    even, odd = range(0, len(unit_LE), 2), range(1, len(unit_LE), 2)
    proposals = []
    for a in even[class_token:]:
        others = odd[distill:]
        likeness = [sum(p * q for p, q in zip(unit_LE[a], unit_LE[b], strict=True)) for b in others]
        best = max(range(len(others)), key=likeness.__getitem__)
        proposals.append((likeness[best], a, others[best]))
    proposals.sort(key=lambda proposal: -proposal[0])
    r = min(r, (len(unit_LE) - class_token - distill) // 2)
    joined = {b: [b] for b in odd}
    for _, a, b in proposals[:r]:
        joined[b].append(a)
    stay = [[a] for _, a, _ in proposals[r:]]
    if class_token:  # it makes no proposal, and stays first by staying in order
        stay = [[0], *sorted(stay)]
    ends = [sorted(joined[b]) for b in odd]
    return [*stay[:1], *ends[:1], *stay[1:], *ends[1:]] if distill else stay + ends


@pytest.mark.parametrize(("num", "class_token", "distill"), SHAPES)
@pytest.mark.parametrize("r", [1, 3, 100])
def test_matching_is_that_of_the_slow_version(
    num: int, class_token: int, distill: int, r: int
) -> None:
    for seed in range(5):
        metric_1LE = draw(1, num, 6, seed=seed)
        plan = tome.match(metric_1LE, r, bool(class_token), bool(distill))
        assert groups_of(plan) == slow_groups(metric_1LE[0], r, class_token, distill)


@pytest.mark.parametrize(("num", "class_token", "distill"), SHAPES)
@pytest.mark.parametrize("r", [1, 4, 100])
def test_p13_sizes_and_the_weighted_mean_are_conserved(
    num: int, class_token: int, distill: int, r: int
) -> None:
    x_SLD, size_SL1 = draw(2, num, 5), sizes(2, num, 1)
    plan = tome.match(draw(2, num, 6, seed=1), r, bool(class_token), bool(distill))
    x_SKD, size_SK1 = merging.merge_weighted(x_SLD, size_SL1, plan)
    assert x_SKD.shape[1] == num - min(r, (num - class_token - distill) // 2)
    assert torch.equal(size_SK1.sum(dim=1), size_SL1.sum(dim=1))
    before, after = (x_SLD * size_SL1).sum(dim=1), (x_SKD * size_SK1).sum(dim=1)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)  # sums in another order


def test_p13_class_and_distillation_tokens_come_out_first_and_unchanged() -> None:
    x_SLD = draw(4, 20, 5)
    for distill in (False, True):
        plan = tome.match(x_SLD, 8, class_token=True, distill=distill)
        x_SKD, size_SK1 = merging.merge_weighted(x_SLD, torch.ones(4, 20, 1), plan)
        fixed = 2 if distill else 1
        assert torch.equal(x_SKD[:, :fixed], x_SLD[:, :fixed])
        assert torch.equal(size_SK1[:, :fixed], torch.ones(4, fixed, 1))


@pytest.mark.parametrize("r", [5, 20, 1000])
def test_p13_sizes_of_a_whole_model_add_up_to_its_cells(r: int) -> None:
    model = HOST.build(5)
    tokens = encoded(model, scene(), (tome.Config(r=r),))
    num = 64
    for _ in range(3):
        num -= min(r, num // 2)
    assert tokens.lengths == (num,) * 3
    assert torch.equal(sum_by_clip(tokens.size_N, tokens), torch.full((3,), 64.0))


def test_p13_merging_nothing_is_the_identity() -> None:
    assert groups_of(tome.match(draw(2, 9, 6), 0)) == [[i] for i in range(9)]


def test_p13_a_single_token_has_nobody_to_join() -> None:
    """Two tokens become one in the first block, and stay one in the others."""
    model, clip_BCTHW = HOST.build(5), still(frames=4, height=4, width=4)
    tokens = encoded(model, clip_BCTHW, (tome.Config(r=3),))
    assert tokens.lengths == (1, 1)
    assert tokens.size_N.tolist() == [2.0, 2.0]


def test_p13_sizes_are_exact_in_half_precision() -> None:
    """bfloat16 knows no odd number above 256: a large still ground would be miscounted."""
    tokens = tokens_of(torch.ones(1, 4, 16).bfloat16(), None)
    tokens = tokens.replace(size_N=torch.tensor([300.0, 301.0, 1.0, 2.0]))
    seen = Seen(torch.ones(4, 2, 8).bfloat16(), None)
    merged = tome.Config(r=1).build(HOST.host()).in_block(tokens, seen, layer=0)
    assert merged.size_N.sum() == 604


def test_p14_duplicates_merge_first() -> None:
    """Three even tokens have a twin among the odd ones, at other places."""
    metric_1LE = draw(1, 16, 6)
    for even, odd in ((2, 9), (8, 1), (14, 15)):
        metric_1LE[0, even] = metric_1LE[0, odd]
    joined = [group for group in groups_of(tome.match(metric_1LE, 3)) if len(group) > 1]
    assert joined == [[1, 8], [2, 9], [14, 15]]


def test_p14_several_duplicates_of_one_token_all_join_it() -> None:
    metric_1LE = draw(1, 12, 6)
    metric_1LE[0, [0, 4, 10]] = metric_1LE[0, 3].clone()
    assert [0, 3, 4, 10] in groups_of(tome.match(metric_1LE, 3))


@pytest.mark.parametrize(("class_token", "distill"), [(False, False), (True, False), (True, True)])
def test_p14_unmerging_gives_each_token_the_value_of_its_group(
    class_token: bool, distill: bool
) -> None:
    x_1LD = draw(1, 13, 5)
    plan = tome.match(x_1LD, 4, class_token, distill)
    merged_1KD = merging.merge_mean(x_1LD, plan)
    copied_1LD = merging.unmerge(merged_1KD, plan)
    for place, group in enumerate(groups_of(plan)):
        mean_D = x_1LD[0, group].mean(dim=0)
        torch.testing.assert_close(merged_1KD[0, place], mean_D)
        assert torch.equal(copied_1LD[0, group], merged_1KD[0, place].expand(len(group), 5))


def test_p14_each_token_has_one_place_after_any_number_of_merges() -> None:
    x_SLD, size_SL1, plans = draw(3, 32, 5), torch.ones(3, 32, 1), []
    for r in (9, 5, 4):
        plans.append(tome.match(x_SLD, r))
        x_SLD, size_SL1 = merging.merge_weighted(x_SLD, size_SL1, plans[-1])
        source_SKL = merging.sources(plans)
        assert torch.equal(source_SKL.sum(dim=1), torch.ones(3, 32, dtype=torch.long))
        assert torch.equal(source_SKL.sum(dim=2).float(), size_SL1[..., 0])
    weight_SKL = source_SKL / size_SL1
    # Merging in steps is the mean over all sources at once, up to rounding.
    torch.testing.assert_close(x_SLD, weight_SKL @ draw(3, 32, 5), rtol=1e-5, atol=1e-5)


def tokens_of(x_SLD: Tensor, mass_SL: Tensor | None) -> Tokens:
    batch, num, dim = x_SLD.shape
    mass_N = None if mass_SL is None else mass_SL.flatten()
    return Tokens(
        x_ND=x_SLD.reshape(-1, dim),
        coord_N3=torch.zeros(batch * num, 3, dtype=torch.long),
        size_N=torch.ones(batch * num),
        mass_N=mass_N,
        lengths=(num,) * batch,
        clips=tuple(range(batch)),
        num_prefix=0,
        grid=(1, 1, num),
        layout=Layout.EQUAL,
    )


def attended(layer: Attention, tokens: Tokens) -> Tensor:
    return tokens.per_sequence(layer(tokens.x_ND, tokens, None)[0])


def attention_layer() -> Attention:
    layer = Attention(16, 4, bias="qkv").requires_grad_(False)
    for i, weight in enumerate(layer.parameters()):
        weight.copy_(0.5 * draw(*weight.shape, seed=i))
    return layer


def test_p14_proportional_attention_with_all_sizes_1_is_plain() -> None:
    layer, x_SLD = attention_layer(), draw(2, 9, 16)
    plain = attended(layer, tokens_of(x_SLD, None))
    ours = attended(layer, tokens_of(x_SLD, torch.ones(2, 9)))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)  # kernels with and without a bias


def test_p14_a_token_of_size_k_is_k_tokens_under_plain_attention() -> None:
    layer, x_1LD, size_L = attention_layer(), draw(1, 9, 16), sizes(9)
    ours = attended(layer, tokens_of(x_1LD, size_L[None]))
    repeated_1MD = x_1LD.repeat_interleave(size_L.long(), dim=1)
    first_L = size_L.long().cumsum(0) - size_L.long()
    official = attended(layer, tokens_of(repeated_1MD, None))[:, first_L]
    # log and exp of a size against a sum of as many terms.
    torch.testing.assert_close(ours, official, rtol=1e-5, atol=1e-5)


def plan_of_layer(model: VideoTransformer, clip_BCTHW: Tensor, r: int, layer: int) -> merging.Plan:
    """Return the plan that merging makes in a layer of a forward."""
    config, plans = tome.Config(r=r), []
    reducer = config.build(model.host)
    handle = model.blocks[layer].attn.register_forward_hook(
        lambda part, inputs, out: plans.append(reducer.plan(inputs[1], out[1], layer))
    )
    model(clip_BCTHW, (config,))
    handle.remove()
    return plans[0]


def test_p15_on_an_even_grid_the_first_block_joins_no_tokens_of_one_column_parity() -> None:
    """So no token joins its own place in another frame, though this clip repeats itself in time."""
    plan = plan_of_layer(HOST.build(5).eval(), still(), 16, layer=0)
    source_SKL = merging.sources([plan])
    odd_column_L = torch.arange(64) % 4 % 2 == 1
    merged_SK = source_SKL.sum(dim=2) > 1
    assert merged_SK.any()
    # Into each one of an odd column go some of even columns, and no second odd one.
    assert (source_SKL[merged_SK] & odd_column_L).sum(dim=1).eq(1).all()


def test_p15_on_an_odd_grid_columns_may_join_over_time() -> None:
    """5 x 5 cells a frame: the same place in the next frame has the other parity."""
    host = replace(HOST, size=20)
    model = host.build(5).eval()
    model.positions.get_buffer("table").zero_()  # repeated cells are then equal
    groups = groups_of(plan_of_layer(model, still(height=20, width=20), 30, layer=0))
    joined = [group for group in groups if len(group) > 1]
    assert joined
    assert all(len({cell % 25 for cell in group}) == 1 for group in joined)


# Pitfalls of copies that no property above would show.


def test_similarity_is_that_of_mean_keys_after_attention_and_before_the_mlp() -> None:
    model, clip_BCTHW = HOST.build(5).eval(), scene()
    block, chain = model.blocks[0], model.chain((tome.Config(r=10),))
    seen: list[Tokens] = []
    handle = block.attn.register_forward_hook(lambda part, inputs, out: seen.append(inputs[1]))
    _, trace = model.traced(clip_BCTHW, chain)
    handle.remove()
    (tokens,) = seen
    keys_NAE = block.attn.project(block.norm1(tokens.x_ND))[1]
    ours = plan_of_layer(model, clip_BCTHW, 10, layer=0)
    by_hand = tome.match(tokens.per_sequence(keys_NAE.mean(dim=1)), 10)
    assert torch.equal(merging.sources([ours]), merging.sources([by_hand]))
    for part, lengths in (("attention", (64, 54, 44)), ("mlp", (54, 44, 34))):
        assert tuple(v.lengths[0] for v in trace.visits if v.part == part) == lengths


def test_one_model_merges_alike_in_every_forward() -> None:
    """A schedule that is used up by a forward would merge nothing in the next one."""
    model = HOST.build(5).eval()
    chain = model.chain((tome.Config(r=8, schedule="decreasing"),))
    lengths = [[v.lengths for v in model.traced(scene(), chain)[1].visits] for _ in range(2)]
    assert lengths[0] == lengths[1]
    assert lengths[0][-2] == (40, 40, 40)  # 16, 8 and 0 of 64 tokens


def test_matching_passes_no_gradient_but_merging_does() -> None:
    x_SLD = draw(1, 8, 4).requires_grad_()
    plan = tome.match(x_SLD, 2)
    (gradient,) = torch.autograd.grad(merging.merge_mean(x_SLD, plan).sum(), x_SLD)
    size_L = torch.tensor([float(len(g)) for g in groups_of(plan) for _ in g])
    member_L = torch.tensor([cell for g in groups_of(plan) for cell in g])
    assert torch.equal(gradient[0, member_L, 0], 1 / size_L)


def test_ties_go_to_the_lower_position() -> None:
    groups = groups_of(tome.match(torch.ones(1, 8, 3), 2))
    assert groups == [[4], [6], [0, 1, 2], [3], [5], [7]]


def test_a_key_of_length_zero_is_like_nothing() -> None:
    metric_1LE = draw(1, 8, 3).abs()  # all others are more or less alike
    metric_1LE[0, 2] = 0
    plan = tome.match(metric_1LE, 3)
    assert not plan.source_SR.eq(2).any()


def test_a_merged_token_stays_in_the_cell_that_the_others_joined() -> None:
    tokens = tokens_of(draw(1, 12, 16), None)
    tokens = tokens.replace(coord_N3=torch.arange(12)[:, None].expand(12, 3))
    seen, reducer = Seen(draw(12, 2, 8, seed=1), None), tome.Config(r=4).build(HOST.host())
    groups = groups_of(reducer.plan(tokens, seen, layer=0))
    merged = reducer.in_block(tokens, seen, layer=0)
    joined = [group[0] if len(group) == 1 else next(i for i in group if i % 2) for group in groups]
    assert merged.coord_N3.tolist() == [[cell] * 3 for cell in joined]
    assert merged.lengths == (8,)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("constant", (5, 5, 5, 5)), ("decreasing", (10, 6, 3, 0)), ("increasing", (0, 3, 6, 10))],
)
def test_schedules_are_truncated_lines(name: str, expected: tuple[int, ...]) -> None:
    assert tome.schedule(4, 5, tome.INFLECTION[name]) == expected


def test_a_single_block_has_a_schedule() -> None:
    assert tome.schedule(1, 5, 0.0) == (5,)


def test_attention_ignores_sizes_when_not_proportional() -> None:
    model = HOST.build(5).eval()
    assert encoded(model, scene(), (tome.Config(r=12, proportional=False),)).mass_N is None


def test_proportional_attention_shifts_the_logits_of_keys_not_of_queries() -> None:
    """A shift of a query's logits would cancel in its softmax; one of the keys does not."""
    layer, x_SLD = attention_layer(), draw(1, 6, 16)
    size_SL = torch.tensor([[1.0, 5.0, 1.0, 1.0, 1.0, 1.0]])
    q, k, v = (x.transpose(0, 1) for x in layer.project(x_SLD[0]))
    logits_ALL = q @ k.transpose(1, 2) / 2 + size_SL.log()  # heads are 4 wide
    by_hand = layer.proj((F.softmax(logits_ALL, dim=-1) @ v).transpose(0, 1).flatten(1))
    ours = attended(layer, tokens_of(x_SLD, size_SL))[0]
    torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("field", [{"r": -1}, {"schedule": "rising"}])
def test_knobs_without_meaning_are_refused(field: dict[str, int | str]) -> None:
    with pytest.raises(Mistake, match=f"tome: {next(iter(field))}="):
        tome.Config(**field)
