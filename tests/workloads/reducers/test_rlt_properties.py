"""RLT: properties P1-P12 of its method card, pitfalls of copies, and slow, obvious versions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import encoded, scene, still
from torch import Tensor

from workloads import augment
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import rlt
from workloads.tokens import Tokens
from workloads.trace import Trace
from workloads.vit import VideoTransformer

TUBELET, PATCH = 2, 4
CHAIN = (rlt.Config(tau=0.1),)
TAUS = (0.0, 0.05, 0.1, 0.3, 1.0)
HOST = videomae.Config(
    dim=24, depth=2, heads=2, tubelet=TUBELET, patch=PATCH, frames=8, size=16, positions="flat"
)


@pytest.fixture(scope="module")
def model() -> VideoTransformer:
    return HOST.build(5).eval().requires_grad_(False)


def score_of(clip_BCTHW: Tensor, tubelet: int = TUBELET) -> Tensor:
    return rlt.score(clip_BCTHW, tubelet, PATCH)


def mask_of(clip_BCTHW: Tensor, tau: float, tubelet: int = TUBELET) -> Tensor:
    return rlt.mask(score_of(clip_BCTHW, tubelet), tau)


def slow_score(clip_BCTHW: Tensor, tubelet: int) -> Tensor:
    """Score each tubelet by the formula of the paper, in loops and float64."""
    clip = clip_BCTHW.double().numpy()
    batch, _, frames, height, width = clip.shape
    shape = (batch, frames // tubelet, height // PATCH, width // PATCH)
    score = np.full(shape, rlt.FIRST)
    for b, t, y, x in itertools.product(*map(range, shape)):
        if t > 0:
            rows, columns = (slice(PATCH * i, PATCH * (i + 1)) for i in (y, x))
            later = clip[b, :, (t + 1) * tubelet - 1, rows, columns]
            earlier = clip[b, :, (t - 1) * tubelet, rows, columns]
            score[b, t, y, x] = np.abs(later - earlier).mean()
    return torch.from_numpy(score).float()


def slow_run_length(keep_T: list[bool], t: int) -> int:
    """Count from a kept tubelet to the next one that is kept, or to the end."""
    length = 1
    while t + length < len(keep_T) and not keep_T[t + length]:
        length += 1
    return length


@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_scores_follow_the_formula(tubelet: int) -> None:
    clip_BCTHW = scene(height=12, width=20)
    # Sums over 16 pixels and 3 channels in another order, in float32 instead of float64.
    torch.testing.assert_close(
        score_of(clip_BCTHW, tubelet), slow_score(clip_BCTHW, tubelet), rtol=2e-6, atol=2e-6
    )


def test_p1_noise_everywhere_at_tau_0_keeps_all_and_is_the_dense_model(
    model: VideoTransformer,
) -> None:
    clip_BCTHW = torch.randn(2, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = encoded(model, clip_BCTHW, (rlt.Config(tau=0),))
    assert tokens.lengths == (64, 64)
    assert torch.equal(tokens.size_N, torch.ones(128))
    dense_BK = model(clip_BCTHW, ())
    # The same tokens are gathered first: nothing else differs.
    torch.testing.assert_close(model(clip_BCTHW, (rlt.Config(tau=0),)), dense_BK, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0, 254.9, 1e6])
def test_p2_still_clip_keeps_the_first_tubelets_only_and_they_span_it(tau: float) -> None:
    """Beyond the card also for tau above 255, where the official code keeps nothing at all."""
    length_BTHW = rlt.run_lengths(mask_of(still(), tau))
    assert torch.equal(length_BTHW[:, 0], torch.full((2, 4, 4), 4, dtype=torch.int32))
    assert not length_BTHW[:, 1:].any()


def test_p3_masks_are_nested_in_tau() -> None:
    masks = [mask_of(scene(batch=4), tau) for tau in TAUS]
    for looser, stricter in itertools.pairwise(masks):
        assert not (stricter & ~looser).any()
    counts = [int(mask.sum()) for mask in masks]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == len(counts), "thresholds that all keep the same show nothing"


@pytest.mark.parametrize("tau", TAUS)
def test_p4_first_tubelets_stay_and_run_lengths_fill_each_column(tau: float) -> None:
    keep_BTHW = mask_of(scene(batch=4), tau)
    length_BTHW = rlt.run_lengths(keep_BTHW)
    assert keep_BTHW[:, 0].all()
    assert torch.equal(length_BTHW.sum(dim=1), torch.full((4, 4, 4), 4))
    assert torch.equal(length_BTHW > 0, keep_BTHW)


@pytest.mark.parametrize("seed", range(5))
def test_p5_run_lengths_are_those_counted_by_hand(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    keep_BTHW = torch.rand(2, 7, 3, 5, generator=generator) < 0.4
    keep_BTHW[:, 0] = True
    length_BTHW = rlt.run_lengths(keep_BTHW)
    official = []  # clip by clip, column by column, and only then in time
    for b, y, x in itertools.product(range(2), range(3), range(5)):
        keep_T = keep_BTHW[b, :, y, x].tolist()
        lengths = {t: slow_run_length(keep_T, t) for t in range(7) if keep_T[t]}
        assert length_BTHW[b, :, y, x].tolist() == [lengths.get(t, 0) for t in range(7)]
        official += lengths.values()
    assert rlt.official_order(length_BTHW).tolist() == official


def test_p5_official_order_of_the_example_on_the_card() -> None:
    """Two columns A, B over three tubelets; kept are t0 A and B, t1 B, t2 A."""
    keep_BTHW = torch.tensor([[[[1, 1]], [[0, 1]], [[1, 0]]]]).bool()
    length_BTHW = rlt.run_lengths(keep_BTHW)
    assert length_BTHW[keep_BTHW].tolist() == [2, 1, 2, 1]
    assert rlt.official_order(length_BTHW).tolist() == [2, 1, 1, 2]


@pytest.mark.parametrize("tubelet", [1, 2, 3])
def test_p6_a_frame_moves_only_the_tubelets_that_look_at_it(tubelet: int) -> None:
    frames = 4 * tubelet
    for frame in range(frames):
        clip_BCTHW = still(batch=1, frames=frames)
        clip_BCTHW[:, :, frame] += 1
        moved = mask_of(clip_BCTHW, 0.1, tubelet)[0, 1:].flatten(1).any(dim=1)
        looks = [frame in ((t + 1) * tubelet - 1, (t - 1) * tubelet) for t in range(1, 4)]
        assert moved.tolist() == looks, f"{frame=}"


def test_p6_frames_1_and_the_last_but_one_are_never_looked_at() -> None:
    clip_BCTHW = still(batch=1)
    clip_BCTHW[:, :, [1, 6]] += 100
    assert torch.equal(mask_of(clip_BCTHW, 0.0), mask_of(still(batch=1), 0.0))


def test_p7_slow_drift_is_dropped_for_ever_and_twice_the_drift_kept() -> None:
    """Three frames lie between the two that are compared (tubelet 2)."""
    ramp_T = torch.arange(8) * 0.03
    clip_BCTHW = ramp_T[None, None, :, None, None].expand(1, 3, 8, 16, 16)
    assert not mask_of(clip_BCTHW, 0.1)[:, 1:].any()  # 0.09 a step, 0.21 in all
    assert mask_of(2 * clip_BCTHW, 0.1).all()


def test_p8_permuting_clips_permutes_masks_and_outputs(model: VideoTransformer) -> None:
    clip_BCTHW, order = scene(batch=4), torch.tensor([2, 0, 3, 1])
    assert torch.equal(mask_of(clip_BCTHW[order], 0.1), mask_of(clip_BCTHW, 0.1)[order])
    ours_BK, unpermuted_BK = model(clip_BCTHW[order], CHAIN), model(clip_BCTHW, CHAIN)
    # Other places in the pack may meet other kernels' edges.
    torch.testing.assert_close(ours_BK, unpermuted_BK[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [3, 4])
def test_p8_mirrors_and_shifts_by_patches_move_the_mask_likewise(axis: int) -> None:
    clip_BCTHW = scene()
    mask_BTHW = mask_of(clip_BCTHW, 0.1)
    assert torch.equal(mask_of(clip_BCTHW.flip(axis), 0.1), mask_BTHW.flip(axis - 1))
    shifted = mask_of(clip_BCTHW.roll(2 * PATCH, axis), 0.1)
    assert torch.equal(shifted, mask_BTHW.roll(2, axis - 1))


def test_p9_packed_is_each_clip_alone(model: VideoTransformer) -> None:
    clip_BCTHW = scene()
    lengths = encoded(model, clip_BCTHW, CHAIN).lengths
    assert len(set(lengths)) > 1, "equal lengths would not show a leak between clips"
    alone_BK = torch.cat([model(clip_CTHW[None], CHAIN) for clip_CTHW in clip_BCTHW])
    torch.testing.assert_close(model(clip_BCTHW, CHAIN), alone_BK, rtol=0, atol=1e-5)


def test_p9_another_clip_in_the_batch_changes_neither_logits_nor_gradients() -> None:
    model, gradients, logits = HOST.build(5), [], []
    for first in (scene(batch=1, seed=1), torch.zeros(1, 3, 8, 16, 16)):
        clip_BCTHW = torch.cat([first, scene(batch=2)[1:]]).requires_grad_()
        logits_BK = model(clip_BCTHW, CHAIN)
        (gradient_BCTHW,) = torch.autograd.grad(logits_BK[1].square().sum(), clip_BCTHW)
        assert not gradient_BCTHW[0].any()
        gradients.append(gradient_BCTHW[1])
        logits.append(logits_BK[1])
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


def test_p10_brightness_of_the_whole_clip_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    clip_BCTHW = torch.randint(0, 200, (2, 3, 8, 16, 16), generator=generator, dtype=torch.uint8)
    clip_BCTHW[:, :, 4:, :8] = clip_BCTHW[:, :, 3:4, :8]  # the upper half freezes
    clip_BCTHW[:, :, 5:, 8:12] = clip_BCTHW[:, :, 4:5, 8:12] + 4  # below tau
    dark, bright = (
        augment.normalise(clip, HOST.mean, HOST.std) for clip in (clip_BCTHW, clip_BCTHW + 50)
    )
    for tau in (0.1, 0.5):  # not 0: normalising rounds, and so may make a difference of 1e-7
        assert torch.equal(mask_of(dark, tau), mask_of(bright, tau))
    assert not mask_of(dark, 0.1).all()


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_p10_mixing_two_still_clips_leaves_them_still(mix: str) -> None:
    rngs = [np.random.default_rng(i) for i in range(2)]
    clip_BCTHW, target_BK = still(), torch.eye(2)
    mixed, _ = augment.augment(clip_BCTHW, target_BK, augment.Config(mix=mix), rngs)
    assert not torch.equal(mixed, clip_BCTHW)
    assert not mask_of(mixed, 0.0)[:, 1:].any()


def test_p11_kept_tokens_have_the_positions_of_their_cells(model: VideoTransformer) -> None:
    rows: list[Tensor] = []
    handle = model.positions.register_forward_hook(lambda part, inputs, out: rows.append(out))
    clip_BCTHW = scene()
    model(clip_BCTHW, CHAIN)
    handle.remove()
    flat_N = mask_of(clip_BCTHW, 0.1).flatten(1).nonzero()[:, 1]
    table_LD = model.positions.on(HOST.grid)
    assert 0 < len(flat_N) < 3 * len(table_LD)
    assert torch.equal(rows[0], table_LD[flat_N])


def test_p11_the_order_of_kept_tokens_does_not_matter(model: VideoTransformer) -> None:
    chain = model.chain(CHAIN)
    entered: list[Tokens] = []
    handle = model.blocks[0].attn.register_forward_hook(
        lambda part, inputs, out: entered.append(inputs[1])
    )
    logits_BK = model(scene(), chain)
    handle.remove()
    (tokens,) = entered
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(len(tokens.x_ND)).split(tokens.lengths)
    order = torch.cat([p[torch.randperm(len(p), generator=generator)] for p in places])
    assert not torch.equal(order, order.sort().values)
    tokens = tokens.replace(x_ND=tokens.x_ND[order], coord_N3=tokens.coord_N3[order])
    for layer, block in enumerate(model.blocks):
        tokens = block(tokens, chain, layer, Trace())
    # Sums over the same tokens in another order.
    torch.testing.assert_close(model.heads[0](model.pool(tokens)), logits_BK, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("grey", "kept"), [(1, False), (5, False), (6, True), (20, True)])
def test_p12_a_step_of_6_grey_levels_is_kept_at_the_default_tau_and_5_are_not(
    grey: int, kept: bool
) -> None:
    clip_BCTHW = torch.full((1, 3, 4, 16, 16), 100, dtype=torch.uint8)
    clip_BCTHW[:, :, 2:] += grey
    score_HW = score_of(augment.normalise(clip_BCTHW, HOST.mean, HOST.std))[0, 1]
    # The card's constant has five digits, pixels in float32 have seven.
    expected = torch.full((4, 4), grey * 0.0173537)
    torch.testing.assert_close(score_HW, expected, rtol=1e-5, atol=1e-6)
    assert bool((score_HW > rlt.Config().tau).all()) == kept


# Pitfalls of copies that no property above would show.


def test_changes_that_cancel_within_a_patch_are_changes() -> None:
    clip_BCTHW = still(batch=1, frames=4)
    sign = torch.tensor([1.0, -1.0]).repeat(8)
    clip_BCTHW[:, :, 2:] += sign
    torch.testing.assert_close(score_of(clip_BCTHW)[:, 1], torch.ones(1, 4, 4))


def test_a_score_of_exactly_tau_is_dropped() -> None:
    score_BTHW = torch.tensor([rlt.FIRST, 0.5, 0.5000001]).view(1, 3, 1, 1)
    assert rlt.mask(score_BTHW, 0.5).flatten().tolist() == [True, False, True]


def test_a_tubelet_of_nan_pixels_is_kept() -> None:
    clip_BCTHW = still(batch=1)
    clip_BCTHW[0, 0, 5, 0, 0] = math.nan  # the last frame of tubelet 2, never the first of one
    keep_THW = mask_of(clip_BCTHW, 0.1)[0]
    assert keep_THW[1:].nonzero().tolist() == [[1, 0, 0]]


def test_nothing_is_padded(model: VideoTransformer) -> None:
    tokens, keep_BTHW = encoded(model, scene(), CHAIN), mask_of(scene(), 0.1)
    assert tokens.lengths == tuple(keep_BTHW.flatten(1).sum(dim=1).tolist())
    assert len(tokens.x_ND) == len(tokens.coord_N3) == keep_BTHW.sum()


def test_pooling_does_not_weigh_by_run_length(model: VideoTransformer) -> None:
    tokens = encoded(model, scene(), CHAIN)
    assert tokens.size_N.max() > 1
    assert tokens.mass_N is None  # nor does attention
    means = [x_LD.mean(dim=0) for x_LD in tokens.x_ND.split(tokens.lengths)]
    torch.testing.assert_close(model.pool(tokens), model.pool.norm(torch.stack(means)))


@pytest.mark.parametrize("frames", [2, 3, 5, 7, 9])
def test_clips_of_one_tubelet_or_of_odd_frames_are_refused(frames: int) -> None:
    with pytest.raises(Mistake, match=f"{frames} frames must be a multiple of the tubelet"):
        score_of(still(frames=frames))


@pytest.mark.parametrize("tau", [-0.5, math.nan, math.inf])
def test_a_tau_without_meaning_is_refused(tau: float) -> None:
    with pytest.raises(Mistake, match="rlt: tau="):
        rlt.Config(tau=tau)


def test_tau_stays_in_imagenet_units_in_a_host_of_other_units(model: VideoTransformer) -> None:
    """The same frames, normalised with another deviation, keep the same tokens."""
    other = replace(HOST, std=(0.5, 0.5, 0.5))
    generator = torch.Generator().manual_seed(0)
    clip_BCTHW = torch.randint(100, 110, (2, 3, 8, 16, 16), generator=generator, dtype=torch.uint8)
    masks = []
    for host in (HOST, other):
        pixels = augment.normalise(clip_BCTHW, host.mean, host.std)
        masks.append(rlt.Config(tau=0.06).build(host.host()).select(pixels, (0, 0)))
    assert torch.equal(*masks)
    assert 0 < masks[0][:, 16:].count_nonzero() < masks[0][:, 16:].numel()


def test_length_rows_go_to_the_tokens_of_that_length() -> None:
    """A table with a 1 at one length adds 1 to the tokens that span so much, and to no others."""
    config = rlt.Config(tau=0.1, encode_length=True)
    model = HOST.build(5, (config,)).eval().requires_grad_(False)
    table = model.learned["rlt"]
    plain = encoded(model, scene(), CHAIN)
    for length in (1, 2, 4):
        table.length_embed.zero_()
        table.length_embed[0, length - 1] = 1.0
        added_N = table(plain.size_N)[:, 0]
        assert torch.equal(added_N, (plain.size_N == length).float())


def test_a_length_table_must_have_been_trained() -> None:
    with pytest.raises(Mistake, match="encode_length=True, but this model has no length table"):
        HOST.build(5)(scene(), (rlt.Config(encode_length=True),))


def test_a_clip_with_longer_runs_than_the_table_is_refused() -> None:
    """Evaluation may show more frames than training did."""
    model = HOST.build(5, (rlt.Config(encode_length=True),))
    with pytest.raises(Mistake, match="rlt: "):
        model(still(frames=12))
