"""vid-TLDR: the properties of section 6 of its method card, and a slow, obvious version.

Those of saliency alone (6.3, 6.4, half of 6.16) are in `test_vid_tldr_saliency.py`; the authors'
costs (6.15) among those of all methods.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from merges import HOST, a_map, draw, masses, merged, tokens_of
from scenes import encoded, scene, still
from torch import Tensor

from workloads import merging
from workloads.attention import attend, attend_and_show
from workloads.blocks import Attention
from workloads.reducers import tome, vid_tldr
from workloads.reducers.base import Seen
from workloads.tokens import with_prefix


def weighted(x_SLD: Tensor, mass_SL: Tensor, r: int, share: float) -> tuple[Tensor, Tensor]:
    """Merge with every source counting alike: 1 is plain merging, 0 plain dropping."""
    plan = vid_tldr.match(x_SLD, r)
    share_SR1 = torch.full((*plan.source_SR.shape, 1), share)
    x_SKD, mass_SK1 = merging.merge_weighted(x_SLD, mass_SL[..., None], plan, share_SR1)
    return x_SKD, mass_SK1[..., 0]


def slow(
    x_LD: Tensor, map_LL: Tensor, mass_L: Tensor, r: int, class_token: bool
) -> tuple[Tensor, Tensor]:
    """Merge one clip as the paper says it, token by token, in float64."""
    x, p, m = x_LD.double(), map_LL.double(), mass_L.double().tolist()
    e = torch.stack([torch.stack([v * v.log() for v in row if v > 0]).sum() for row in p])
    s = ((e - e.mean()) / (e.max() - e.mean())).clamp(min=0).tolist()
    unit = x / x.norm(dim=1, keepdim=True)
    even, odd = range(0, len(x), 2), range(1, len(x), 2)
    proposals = []
    for a in even[class_token:]:
        best = max(odd, key=lambda b, a=a: float(unit[a] @ unit[b]))
        proposals.append((float(unit[a] @ unit[best]), a, best))
    proposals.sort(key=lambda one: -one[0])
    joins = {a: b for _, a, b in proposals[:r]}
    out_x, out_m = [], []
    for i in [a for a in even if a not in joins] + list(odd):
        group = [(m[i], i)] + [(s[a] * m[a], a) for a, b in joins.items() if b == i]
        total = sum(weight for weight, _ in group)
        out_m.append(total)
        out_x.append(sum(weight * x[j] for weight, j in group) / total)
    return torch.stack(out_x).float(), torch.tensor(out_m).float()


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize(("num", "r"), [(8, 1), (13, 4), (20, 9), (20, 7)])
def test_a_merge_is_that_of_the_slow_version(num: int, r: int, class_token: bool) -> None:
    for seed in range(3):
        x_SLD, map_SLL = draw(2, num, 6, seed=seed), a_map(2, num, num, seed=seed)
        mass_SL = masses(2, num, seed=seed)
        if class_token:
            mass_SL[:, 0] = 1
        ours = merged(x_SLD, map_SLL, r, mass_SL, int(class_token))
        for i in range(2):
            x_KD, mass_K = slow(x_SLD[i], map_SLL[i], mass_SL[i], r, class_token)
            torch.testing.assert_close(ours.per_sequence(ours.x_ND)[i], x_KD, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours.per_sequence(ours.mass_N)[i], mass_K)


# Card 6.1 and 6.2: how many, and in which order.


@torch.no_grad()
@pytest.mark.parametrize("config", [vid_tldr.Config.off(), vid_tldr.Config(counts=(0, 0))])
def test_switched_off_it_is_the_dense_model(config: vid_tldr.Config) -> None:
    """Card 6.1."""
    model = HOST.build(5).eval()
    assert config.build(model.host).steps() == ()
    assert torch.equal(model(scene(), (config,)), model(scene(), ()))
    assert encoded(model, scene(), (config,)).mass_N is None


@pytest.mark.parametrize(("num", "asked"), [(8, 0.1), (1, 5), (2, 1)])
def test_where_nothing_may_go_nothing_changes(num: int, asked: float) -> None:
    """Card 6.1: a share below one token, a single token, a class token and one more."""
    tokens = tokens_of(draw(2, num, 6), None, num_prefix=int(num == 2))
    reducer = vid_tldr.Config(counts=(asked,)).build(HOST.host())
    assert reducer.in_block(tokens, Seen(draw(2 * num, 1, 1), a_map(2, num, num)), 0) is tokens


@pytest.mark.parametrize("num", [8, 13])
@pytest.mark.parametrize("asked", [1, 3, 4, 100, 0.3, 0.9])
def test_counts_and_order(num: int, asked: float) -> None:
    """Card 6.2: surviving even tokens as they stood, then all odd ones."""
    plan = vid_tldr.match(draw(2, num, 6), asked)
    removed = min(int(num * asked) if asked < 1 else int(asked), num // 2)
    assert plan.kept_SK.shape == (2, num - removed)
    odd = list(range(1, num, 2))
    for kept, gone in zip(plan.kept_SK.tolist(), plan.source_SR.tolist(), strict=True):
        assert kept == [i for i in range(0, num, 2) if i not in gone] + odd
    ours = merged(draw(2, num, 6), a_map(2, num, num), asked)
    assert ours.lengths == (num - removed,) * 2
    assert ours.coord_N3[:, 0].tolist() == plan.kept_SK.flatten().tolist()


# Card 6.5 to 6.10: what a merge does to tokens and mass.


def test_with_full_saliency_it_is_plain_merging() -> None:
    """Card 6.5."""
    x_SLD, mass_SL = draw(2, 21, 6), masses(2, 21)
    x_SKD, mass_SK = weighted(x_SLD, mass_SL, 8, share=1)
    torch.testing.assert_close(mass_SK.sum(dim=1), mass_SL.sum(dim=1))
    before, after = ((m[..., None] * x).sum(1) for m, x in ((mass_SL, x_SLD), (mass_SK, x_SKD)))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    plain = tome.match(x_SLD, 8)
    plain_SKD, _ = merging.merge_weighted(x_SLD, mass_SL[..., None], plain)
    place_SK = plain.kept_SK.argsort(dim=1), vid_tldr.match(x_SLD, 8).kept_SK.argsort(dim=1)
    torch.testing.assert_close(  # ToMe leaves another order behind
        merging.take(x_SKD, place_SK[1]), merging.take(plain_SKD, place_SK[0]), rtol=0, atol=1e-6
    )


def test_without_saliency_it_is_plain_dropping() -> None:
    """Card 6.6: bit for bit."""
    x_SLD, mass_SL = draw(2, 21, 6), masses(2, 21)
    kept_SK = vid_tldr.match(x_SLD, 8).kept_SK
    x_SKD, mass_SK = weighted(x_SLD, mass_SL, 8, share=0)
    assert torch.equal(x_SKD, merging.take(x_SLD, kept_SK))
    assert torch.equal(mass_SK, mass_SL.gather(1, kept_SK))


def test_mass_is_lost_by_background_alone() -> None:
    """Card 6.7."""
    x_SLD, map_SLL, mass_SL = draw(3, 30, 6), a_map(3, 30, 30), masses(3, 30)
    out, plan = merged(x_SLD, map_SLL, 12, mass_SL), vid_tldr.match(x_SLD, 12)
    s_SL = vid_tldr.saliency(vid_tldr.sharpness(map_SLL))
    lost_SL = ((1 - s_SL) * mass_SL).gather(1, plan.source_SR)
    after = out.per_sequence(out.mass_N)
    torch.testing.assert_close(after.sum(dim=1), mass_SL.sum(dim=1) - lost_SL.sum(dim=1))
    assert (after.amin(dim=1) >= mass_SL.amin(dim=1)).all()
    assert torch.equal(out.size_N.view(3, -1).sum(dim=1), torch.full((3,), 30.0))


def test_merges_in_a_row_average_the_groups_of_sources() -> None:
    """Card 6.8."""
    x_SLD = draw(2, 24, 6)
    one_SLD, mass_SL, plans = x_SLD, torch.ones(2, 24), []
    for r in (9, 5):
        plans.append(vid_tldr.match(one_SLD, r))
        one_SLD, mass_SL = weighted(one_SLD, mass_SL, r, share=1)
    groups_SKL = merging.sources(plans).float()
    assert torch.equal(groups_SKL.sum(dim=2), mass_SL)
    direct_SKD = groups_SKL @ x_SLD / mass_SL[..., None]
    torch.testing.assert_close(one_SLD, direct_SKD, rtol=1e-5, atol=1e-5)
    ones = [(plan, torch.ones(*plan.source_SR.shape, 1)) for plan in plans]
    assert torch.equal(merging.contributions(ones), groups_SKL)


def test_the_scale_of_tokens_passes_through() -> None:
    """Card 6.9: by a power of 2 exactly."""
    x_SLD, map_SLL = draw(2, 20, 6), a_map(2, 20, 20)
    ours, larger = merged(x_SLD, map_SLL, 7), merged(4 * x_SLD, map_SLL, 7)
    assert torch.equal(larger.x_ND, 4 * ours.x_ND)
    assert torch.equal(larger.coord_N3, ours.coord_N3)


def test_the_scale_of_mass_does_not_reach_tokens() -> None:
    """Card 6.10: by a power of 2 exactly."""
    x_SLD, map_SLL, mass_SL = draw(2, 20, 6), a_map(2, 20, 20), masses(2, 20)
    ours, heavier = (merged(x_SLD, map_SLL, 7, scale * mass_SL) for scale in (1, 8))
    assert torch.equal(heavier.x_ND, ours.x_ND)
    assert torch.equal(heavier.mass_N, 8 * ours.mass_N)


@torch.no_grad()
def test_a_clip_merges_alike_alone_and_in_a_batch() -> None:
    """Card 6.11: statistics are those of a clip."""
    model, chain = HOST.build(5).eval(), (vid_tldr.Config(ratio=0.3),)
    together = encoded(model, scene(), chain)
    for i, clip_CTHW in enumerate(scene()):
        alone = encoded(model, clip_CTHW[None], chain)
        assert torch.equal(alone.coord_N3, together.per_sequence(together.coord_N3)[i])
        for one, all_S in ((alone.x_ND, together.x_ND), (alone.mass_N, together.mass_N)):
            torch.testing.assert_close(one, together.per_sequence(all_S)[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num", "most"), [(8, 3), (13, 6)])
def test_a_class_token_stays_first_and_as_it_is(num: int, most: int) -> None:
    """Card 6.12: where half of an even number is asked for too, the official copy merges it."""
    x_SLD = draw(2, num, 6)
    x_SLD[:, 0] = x_SLD[:, 1]  # nothing would merge sooner
    for r in (1, most, 100):
        out = merged(x_SLD, a_map(2, num, num), r, None, prefix=1)
        assert out.lengths == (num - min(r, most),) * 2
        assert torch.equal(out.per_sequence(out.x_ND)[:, 0], x_SLD[:, 0])
        assert torch.equal(out.per_sequence(out.mass_N)[:, 0], torch.ones(2))


@torch.no_grad()
def test_class_tokens_and_a_sequence_a_frame() -> None:
    """Card 6.12 in the layout of a host with attention per frame."""
    frames = tokens_of(draw(6, 16, 24)).replace(clips=(0, 0, 0, 1, 1, 1))
    tokens = with_prefix(frames, draw(1, 24, seed=1))
    reducer = vid_tldr.Config(ratio=0.3).build(replace(HOST.host(), num_prefix=1, per_frame=True))
    out = reducer.in_block(tokens, Seen(draw(102, 1, 1), a_map(6, 17, 17)), layer=0)
    assert out.lengths == (12,) * 6
    assert out.clips == tokens.clips
    assert out.num_prefix == 1
    assert torch.equal(out.per_sequence(out.coord_N3)[:, 0], -torch.ones(6, 3, dtype=torch.long))


# Card 6.13 and 6.14: attention and gradients.


def test_a_token_of_mass_k_is_k_tokens_beside_a_map_and_without_one() -> None:
    """Card 6.13."""
    q, k, v = (draw(9, 2, 8, seed=i) for i in range(3))
    mass_L = torch.tensor([1, 3, 1, 2, 1, 1, 7, 1, 4])
    tokens = tokens_of(draw(1, 9, 16), mass_L[None].float())
    repeated = [x.repeat_interleave(mass_L, dim=0) for x in (q, k, v)]
    plain = attend(*repeated, tokens_of(draw(1, int(mass_L.sum()), 16)))[mass_L.cumsum(0) - mass_L]
    for ours in (attend(q, k, v, tokens), attend_and_show(q, k, v, tokens)[0]):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_gradients_know_weights_and_pass_through_values_alone() -> None:
    """Card 6.14: d x'_j / d x_i = s_i m_i / m'_j, and nothing through saliency or mass."""
    x_SLD, mass_SL = draw(1, 12, 6).requires_grad_(), masses(1, 12).requires_grad_()
    map_SLL = a_map(1, 12, 12)
    out, plan = merged(x_SLD, map_SLL, 5, mass_SL.detach()), vid_tldr.match(x_SLD, 5)
    (gradient_SLD,) = torch.autograd.grad(out.x_ND[:, 0].sum(), x_SLD)
    share_R = vid_tldr.share(map_SLL, plan)[0, :, 0]
    source_R, into_R = plan.source_SR[0], plan.into_SR[0]
    expected_R = share_R * mass_SL[0, source_R] / out.mass_N[into_R]
    torch.testing.assert_close(gradient_SLD[0, source_R, 0], expected_R)
    assert not gradient_SLD[..., 1:].any()
    assert not out.mass_N.requires_grad


def test_saliency_passes_no_gradient_to_queries_and_keys() -> None:
    """Card 6.14: the map that a layer shows is detached, and so is the mass of later blocks."""
    layer, tokens = Attention(16, 2), tokens_of(draw(1, 9, 16))
    _, seen = layer(tokens.x_ND, tokens, "map")
    assert not seen.map_SLL.requires_grad
    model = HOST.build(5)
    assert not encoded(model, scene(), (vid_tldr.Config(),)).mass_N.requires_grad


# Card 6.16: the same bits again, and finite where the official code is not.


@torch.no_grad()
def test_the_same_bits_again() -> None:
    """Card 6.16."""
    model, chain = HOST.build(5).eval(), (vid_tldr.Config(ratio=0.4),)
    assert torch.equal(model(scene(), chain), model(scene(), chain))


@torch.no_grad()
def test_a_model_that_attends_to_all_alike_merges_plainly() -> None:
    """Card 6.16: no query, no saliency, and mass is size."""
    model = HOST.build(5).eval()
    for block in model.blocks:
        block.attn.qkv.weight[: HOST.dim].zero_()
    tokens = encoded(model, still(), (vid_tldr.Config(ratio=0.3),))
    assert tokens.x_ND.isfinite().all()
    assert torch.equal(tokens.mass_N, tokens.size_N)
