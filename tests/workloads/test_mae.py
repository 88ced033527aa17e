"""The masked autoencoder: what is seen, what is asked for, what it costs, and what a card says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reducers.scenes import SEEDS, scene, still
from torch import Tensor
from torch.nn import functional as F

from workloads import cost, decoder, finetune, mae
from workloads.mae import MaskedAutoencoder
from workloads.mistakes import Mistake
from workloads.models import clip, fluxvit, videomae
from workloads.reducers import drop, mats, rlt, tome
from workloads.tokens import num_kept
from workloads.trace import Trace

HOST = videomae.Config(dim=24, depth=2, heads=2, patch=4, frames=8, size=16)
LIGHT = decoder.Config(dim=12, depth=1, heads=3)
N = 64  # tokens of a clip
SELECTORS: dict[str, tuple[Any, ...]] = {
    "all": (),
    "mats": (mats.Config(keep=0.3),),
    "drop": (drop.Config(keep=0.3),),
    "rlt": (rlt.Config(tau=0.1),),
    "frames": (mats.Config(keep=0.3, alpha=1.5),),
}


def model_of(reducers: tuple[Any, ...] = SELECTORS["mats"], keep: float = 0.1) -> MaskedAutoencoder:
    return mae.build(HOST, reducers, LIGHT, keep)


def split_of(model: MaskedAutoencoder, clip_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return which cells a forward shows and which it asks for, bool (B, n) each."""
    seen: list[Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda part, args: seen.extend(map(mask, args)))
    with torch.no_grad():
        model(clip_BCTHW, SEEDS)
    hook.remove()
    return seen[0], seen[1]


def mask(tokens: Any) -> Tensor:
    if isinstance(tokens, Trace):
        return torch.empty(0)
    found_BN = torch.zeros(len(tokens.lengths) * math.prod(tokens.grid), dtype=torch.bool)
    found_BN[mae.cells_of(tokens)] = True
    return found_BN.view(len(tokens.lengths), -1)


@pytest.mark.parametrize("name", SELECTORS)
def test_a_forward_is_the_loss_of_the_masks_that_it_makes(name: str) -> None:
    """With a selection in front and without, equal in all clips and ragged."""
    model, clip_BCTHW = model_of(SELECTORS[name]), scene(frames=12 if name == "frames" else 8)
    visible_BN, target_BN = split_of(model, clip_BCTHW)
    chain = model.encoder.chain(None)
    shown = model.encoder.choose_frames(clip_BCTHW, chain, SEEDS, Trace())
    found = model(clip_BCTHW, SEEDS)
    assert torch.isclose(mae.loss(model, shown, visible_BN, target_BN), found.loss, rtol=1e-5)
    assert not (visible_BN & target_BN).any()
    survivors = mask(model.encoder.embed(shown, chain, SEEDS, Trace()))
    assert torch.equal(visible_BN | target_BN, survivors)
    assert found.survivors == tuple(survivors.sum(dim=1).tolist())


@pytest.mark.parametrize("name", ["all", "mats", "drop", "frames"])
def test_card_10_1_so_many_are_visible_and_so_many_asked_for(name: str) -> None:
    frames = 12 if name == "frames" else 8
    visible_BN, target_BN = split_of(model_of(SELECTORS[name]), scene(frames=frames))
    selected = N if name == "all" else num_kept(N, 0.3)
    assert visible_BN.sum(dim=1).tolist() == [num_kept(N, 0.1)] * 3
    assert target_BN.sum(dim=1).tolist() == [selected - num_kept(N, 0.1)] * 3


@pytest.mark.parametrize(
    ("survivors", "visible"), [(64, 12), (13, 12), (12, 4), (6, 2), (3, 1), (2, 1), (1, 1)]
)
def test_where_few_survive_a_third_of_them_is_visible(survivors: int, visible: int) -> None:
    assert mae.num_visible(64, survivors, 0.2) == visible


def test_a_clip_without_targets_adds_no_loss() -> None:
    model = model_of()
    visible_BN, target_BN = split_of(model, clip_BCTHW := scene())
    target_BN[1] = False
    ours = mae.loss(model, clip_BCTHW, visible_BN, target_BN)
    two = torch.tensor([0, 2])
    others = mae.loss(model, clip_BCTHW[two], visible_BN[two], target_BN[two])
    assert torch.isclose(ours, others, rtol=1e-5)
    nothing = mae.loss(model, clip_BCTHW, visible_BN, torch.zeros_like(target_BN))
    assert nothing == 0
    nothing.backward()
    assert not model.decoder.head.weight.grad.any()


def test_the_loss_is_the_mean_over_targets_whatever_their_clip() -> None:
    model, clip_BCTHW = model_of(SELECTORS["rlt"]), scene()
    visible_BN, target_BN = split_of(model, clip_BCTHW)
    assert len({*target_BN.sum(dim=1).tolist()}) > 1
    found = mae.reconstruct(model, clip_BCTHW, visible_BN, target_BN)
    alone = [
        mae.reconstruct(model, clip_BCTHW[i : i + 1], visible_BN[i : i + 1], target_BN[i : i + 1])
        for i in range(3)
    ]
    pred_NV = torch.cat([one.pred_NV for one in alone])
    torch.testing.assert_close(found.pred_NV, pred_NV, rtol=0, atol=1e-5)
    labels_NV = torch.cat([one.label_NV for one in alone])
    assert torch.isclose(found.loss, F.mse_loss(pred_NV, labels_NV), rtol=1e-5)


def test_card_10_8_the_decoder_sees_what_was_selected_and_predicts_targets() -> None:
    model = model_of()
    entered: list[Any] = []
    model.decoder.blocks[0].register_forward_pre_hook(lambda part, args: entered.append(args[0]))
    found = model(scene(), SEEDS)
    selected = num_kept(N, 0.3)
    assert entered[0].lengths == (selected,) * 3
    assert found.pred_NV.shape == (3 * (selected - num_kept(N, 0.1)), 6 * 4**2)


def test_card_10_8_pixels_of_discarded_tokens_change_nothing() -> None:
    model, clip_BCTHW = model_of(), scene()
    visible_BN, target_BN = split_of(model, clip_BCTHW)
    before = mae.reconstruct(model, clip_BCTHW, visible_BN, target_BN)
    keep = (visible_BN | target_BN).view(3, 1, 4, 4, 4).float()
    pixels = F.interpolate(keep, scale_factor=(2, 4, 4)).bool()
    noise = torch.randn(clip_BCTHW.shape, generator=torch.Generator().manual_seed(0))
    after = mae.reconstruct(model, clip_BCTHW.where(pixels, noise), visible_BN, target_BN)
    assert torch.equal(before.pred_NV, after.pred_NV)
    assert torch.equal(before.label_NV, after.label_NV)


def test_card_10_9_gradients_reach_the_embedding_through_visible_tokens_alone() -> None:
    """All of them as the forward embeds, then only those that are shown: the same gradients."""
    model, clip_BCTHW = model_of(), scene()
    model(clip_BCTHW, SEEDS).loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    mae.loss(model, clip_BCTHW, *split_of(model, clip_BCTHW)).backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
        assert ours[name].any(), name
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        "encoder.pool.norm.weight",
        "encoder.pool.norm.bias",
        "encoder.heads.0.weight",
        "encoder.heads.0.bias",
    }


def test_card_10_10_labels_have_mean_zero_and_variance_one_in_each_colour() -> None:
    model, clip_BCTHW = model_of(), scene()
    label_NPC = model.labels(clip_BCTHW, torch.arange(3 * N)).view(3 * N, 32, 3)
    torch.testing.assert_close(label_NPC.mean(dim=1), torch.zeros(3 * N, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(label_NPC.var(dim=1), torch.ones(3 * N, 3), rtol=0, atol=1e-4)
    flat = torch.full((1, 3, 8, 16, 16), 0.1234)
    assert not model.labels(flat, torch.arange(N)).any()


def test_labels_are_pixel_after_pixel_and_colour_last() -> None:
    model = model_of()
    clip_BCTHW = scene(batch=1, seed=3)
    (label_V,) = model.labels(clip_BCTHW, torch.tensor([16 + 4 + 2]))  # t=1, y=1, x=2
    patch_CTHW = clip_BCTHW[0, :, 2:4, 4:8, 8:12] * torch.tensor(HOST.std)[:, None, None, None]
    values_CP = patch_CTHW.flatten(1)
    values_CP = (values_CP - values_CP.mean(1, True)) / (values_CP.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(label_V, values_CP.T.flatten(), rtol=1e-4, atol=1e-5)


def test_seeds_decide_the_masks_and_a_clip_has_its_own() -> None:
    model, clip_BCTHW = model_of(), scene()
    with torch.no_grad():
        ours = model(clip_BCTHW, SEEDS)
        assert torch.equal(ours.pred_NV, model(clip_BCTHW, SEEDS).pred_NV)
        assert not torch.equal(ours.pred_NV, model(clip_BCTHW, (1, 2, 3)).pred_NV)
        alone = model(clip_BCTHW[1:2], SEEDS[1:2])
    per_clip = len(ours.pred_NV) // 3
    close = ours.pred_NV[per_clip : 2 * per_clip]
    torch.testing.assert_close(alone.pred_NV, close, rtol=0, atol=1e-5)


def test_still_clips_can_be_pretrained_on() -> None:
    for reducers in SELECTORS.values():
        assert model_of(reducers)(still(frames=12), SEEDS[:2]).loss.isfinite()


def test_half_precision_gives_a_float32_loss() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model_of()(scene(), SEEDS).loss
    assert loss.dtype == torch.float32
    assert loss.isfinite()


HOSTS = {
    "per frame": clip.Config(
        dim=24, depth=2, heads=2, patch=4, frames=8, size=16, adapters="space_time"
    ),
    "class token": fluxvit.Config(
        dim=32, depth=2, heads=2, patch=4, frames=8, size=16, budgets=(32,), pool_heads=4
    ),
}


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("reducers", [(mats.Config(keep=0.3),), (rlt.Config(),)])
def test_every_host_can_be_pretrained(name: str, reducers: tuple[Any, ...]) -> None:
    model, clip_BCTHW = mae.build(HOSTS[name], reducers, LIGHT, 0.1), scene()
    found = model(clip_BCTHW, SEEDS)
    found.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    ours = mae.loss(model, clip_BCTHW, *split_of(model, clip_BCTHW))
    assert torch.isclose(ours, found.loss, rtol=1e-5)
    tuned = HOSTS[name].build(5)
    missing = finetune.adopt(tuned, {n: w.detach() for n, w in mae.weights_of(model).items()})
    assert {part.partition(".")[0] for part in missing} <= {*mae.UNUSED}


# Weights.


def test_a_fine_tuning_takes_the_encoder_and_leaves_norm_and_decoder() -> None:
    weights, model = mae.weights_of(model_of()), HOST.build(5)
    missing = finetune.adopt(model, weights)
    assert missing == ("heads.0.bias", "heads.0.weight", "pool.norm.bias", "pool.norm.weight")
    own = model.state_dict()
    assert all(torch.equal(own[n], w) for n, w in weights.items() if n in own)
    left = {name.partition(".")[0] for name in weights.keys() - own.keys()}
    assert left == {"norm", "decoder"}


def test_weights_can_be_loaded_again_in_full() -> None:
    first, other = model_of(), mae.build(HOST, SELECTORS["mats"], LIGHT, 0.1, seed=1)
    with torch.no_grad():
        clip_BCTHW = scene()
        assert not torch.equal(first(clip_BCTHW).pred_NV, other(clip_BCTHW).pred_NV)
        mae.load(other, mae.weights_of(first))
        assert torch.equal(first(clip_BCTHW).pred_NV, other(clip_BCTHW).pred_NV)


def test_weights_of_another_model_are_refused() -> None:
    wider = mae.build(HOST, (), decoder.Config(dim=24, depth=1, heads=3), 0.1)
    with pytest.raises(Mistake, match=r"tensors do not fit, such as decoder\."):
        mae.load(wider, mae.weights_of(model_of()))
    with pytest.raises(Mistake, match="do not fit"):
        mae.load(wider, HOST.build(2).state_dict())


# Cost and mistakes.


def pretraining_gmacs(size: str, width: int, heads: int, **light: Any) -> float:
    """Return the cost of a clip of 16 x 224 px at keep 0.3, visible 0.1, as the paper counts."""
    host = videomae.Config(**videomae.SIZES[size])
    with torch.device("meta"):
        model = mae.build(
            host, (mats.Config(keep=0.3),), decoder.Config(dim=width, heads=heads, **light), 0.1
        )
    with torch.no_grad():
        _, trace = model.traced(torch.empty(1, 3, 16, 224, 224, device="meta"))
    return cost.by_paper(trace, cost.COUNTINGS["mats"], host.dim) / 1e9


@pytest.mark.parametrize(
    ("size", "width", "heads", "gmacs"),
    [
        ("small", 192, 3, 5.74),
        ("base", 384, 6, 19.78),
        ("large", 512, 8, 57.92),
        ("huge", 640, 8, 114.0),
    ],
)
def test_card_7_pretraining_costs_what_the_paper_says(
    size: str, width: int, heads: int, gmacs: float
) -> None:
    """Rows of the card, to the digits that it gives."""
    ours = pretraining_gmacs(size, width, heads)
    assert ours == pytest.approx(gmacs, abs=0.05 if size == "huge" else 0.005)


@pytest.mark.parametrize("reducers", [(tome.Config(r=2),), (mats.Config(), tome.Config(r=2))])
def test_reducers_that_act_in_blocks_are_refused(reducers: tuple[Any, ...]) -> None:
    with pytest.raises(Mistake, match="tome acts in block 0\n  pre-training takes those that sel"):
        model_of(reducers)


@pytest.mark.parametrize("wrong", [{"dim": 15}, {"heads": 5}, {"depth": 0}])
def test_decoders_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(Mistake, match=r"decoder: dim=.* must be even and a multiple of heads"):
        decoder.Config(**{"dim": 12, "heads": 3, **wrong})
