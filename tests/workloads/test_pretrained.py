"""Checkpoint folders: the numbers of transformers, there and back."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    OWN,
    SHAPES,
    clips_for,
    refused,
    rewrite,
    saved,
    shaken,
    theirs,
    transformers,
    weights_in,
)

from workloads import mae
from workloads.folder import read
from workloads.mistakes import Mistake
from workloads.models import clip, fluxvit, videomae
from workloads.pretrained import load, load_pretraining, save
from workloads.reducers import drop, inti, rlt, tome
from workloads.reducers.base import chain_of
from workloads.trace import Trace
from workloads.vit import VideoTransformer

CLOSE = {"rtol": 0, "atol": 1e-5}  # float32, sums in another order


def bit_equal(one: VideoTransformer, two: VideoTransformer) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The numbers of transformers.


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_mean", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_logits_are_those_of_transformers(
    shape: dict[str, Any], by_mean: bool, has_bias: bool, tmp_path: Path
) -> None:
    model = theirs(**shape, use_mean_pooling=by_mean, qv_bias=has_bias)
    clip_BCTHW = clips_for(model.config)
    ours = load(saved(model, tmp_path))
    expected = model(clip_BCTHW.transpose(1, 2)).logits
    torch.testing.assert_close(ours(clip_BCTHW), expected, **CLOSE)
    assert not ours.training


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_mean", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_the_loss_of_pretraining_is_that_of_transformers(
    shape: dict[str, Any], by_mean: bool, normed: bool, tmp_path: Path
) -> None:
    settings = {**shape, "use_mean_pooling": by_mean, "norm_pix_loss": normed, "qv_bias": normed}
    model = theirs("VideoMAEForPreTraining", **settings)
    clip_BCTHW = clips_for(model.config)
    ours = load_pretraining(saved(model, tmp_path))
    n = model.videomae.embeddings.num_patches
    hidden_BN = torch.rand(2, n, generator=torch.Generator().manual_seed(3)).argsort() < n * 3 // 4
    found = mae.reconstruct(ours, clip_BCTHW, ~hidden_BN, hidden_BN)
    expected = model(clip_BCTHW.transpose(1, 2), bool_masked_pos=hidden_BN)
    torch.testing.assert_close(
        mae.loss(ours, clip_BCTHW, ~hidden_BN, hidden_BN), expected.loss, **CLOSE
    )
    torch.testing.assert_close(found.pred_NV, expected.logits.flatten(0, 1), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_of_frames_are_those_of_transformers(
    shape: dict[str, Any], activation: str, tmp_path: Path
) -> None:
    known = {k: v for k, v in shape.items() if k not in ("tubelet_size", "num_frames")}
    sides = {"image_size": 16, "patch_size": 4, "hidden_act": activation}
    model = theirs("CLIPVisionModel", **{**sides, **known})
    clip_BCTHW = clips_for(model.config)
    ours = load(saved(model, tmp_path), num_classes=7)
    frames = [model(clip_BCTHW[:, :, t]) for t in range(3)]
    pooled_BTD = torch.stack([frame.pooler_output for frame in frames], dim=1)
    torch.testing.assert_close(ours.features(clip_BCTHW), pooled_BTD.mean(dim=1), **CLOSE)
    tokens = ours.encode(clip_BCTHW, chain_of((), ours.host), None, Trace())
    last_BTLD = torch.stack([frame.last_hidden_state for frame in frames], dim=1)
    torch.testing.assert_close(tokens.x_ND, last_BTLD.flatten(0, 2), **CLOSE)
    assert ours(clip_BCTHW).shape == (2, 7)


@torch.no_grad()
def test_the_encoder_of_a_pretraining_gets_a_new_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A mean and a new norm, as the papers fine-tune, whatever pool its config names."""
    model = theirs("VideoMAEForPreTraining", use_mean_pooling=False)
    clip_BCTHW = clips_for(model.config)
    ours = load(saved(model, tmp_path), num_classes=7)
    assert "new head for 7 classes" in caplog.text
    tokens = ours.encode(clip_BCTHW, chain_of((), ours.host), None, Trace())
    # Theirs are behind a norm.
    expected = model.videomae(clip_BCTHW.transpose(1, 2)).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(model.videomae.layernorm(tokens.x_ND), expected, **CLOSE)
    with pytest.raises(Mistake, match="no head"):
        load(tmp_path)


@torch.no_grad()
def test_older_names_and_shards_are_read_too(tmp_path: Path) -> None:
    model = theirs()
    clip_BCTHW = clips_for(model.config)
    expected = load(saved(model, tmp_path / "new"))(clip_BCTHW)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 1
    assert torch.equal(load(tmp_path / "shards")(clip_BCTHW), expected)
    weights = weights_in(tmp_path / "new")
    for short, long in (("q_bias", "query.bias"), ("v_bias", "value.bias")):
        weights = {name.replace(short, long): weight for name, weight in weights.items()}
    rewrite(tmp_path / "new", weights)
    assert torch.equal(load(tmp_path / "new")(clip_BCTHW), expected)
    frames = saved(theirs("CLIPVisionModel", image_size=16, patch_size=4), tmp_path / "clip")
    plain = load(frames, num_classes=2)
    old = {f"vision_model.{name}": weight for name, weight in weights_in(frames).items()}
    rewrite(frames, old | {"vision_model.embeddings.position_ids": torch.arange(17)[None]})
    assert bit_equal(load(frames, num_classes=2), plain)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    folder = saved(theirs().bfloat16(), tmp_path)
    model = load(folder)
    stored = weights_in(folder)["classifier.weight"]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert torch.equal(model.state_dict()["heads.0.weight"], stored.float())


# There and back.


@torch.no_grad()
@pytest.mark.parametrize("by_mean", [True, False])
def test_transformers_reads_what_is_saved(by_mean: bool, tmp_path: Path) -> None:
    model = theirs(use_mean_pooling=by_mean, id2label={i: f"class {i}" for i in range(5)})
    clip_BCTHW = clips_for(model.config)
    ours = load(saved(model, tmp_path / "theirs"))
    save(ours, tmp_path / "ours")
    again = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "ours")
    theirs_BK, own = model(clip_BCTHW.transpose(1, 2)).logits, again.state_dict()
    assert torch.equal(again.eval()(clip_BCTHW.transpose(1, 2)).logits, theirs_BK)
    assert all(torch.equal(own[name], weight) for name, weight in model.state_dict().items())
    assert again.config.id2label == model.config.id2label
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert tuple(pixels.image_mean) == videomae.Config().mean
    # And what it writes of it is read here, the chain included.
    again.save_pretrained(tmp_path / "again")
    assert bit_equal(load(tmp_path / "again"), ours)
    assert load(tmp_path / "again").config == ours.config


@torch.no_grad()
def test_a_model_of_ours_is_the_same_in_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, clip_BCTHW = shaken(OWN.build(4)), clips_for(theirs().config)
    save(model, tmp_path)
    assert not caplog.records
    again = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path)
    expected = again.eval()(clip_BCTHW.transpose(1, 2)).logits
    torch.testing.assert_close(model(clip_BCTHW), expected, **CLOSE)
    save(replace(OWN, pool_eps=0).build(4), tmp_path)
    assert "another epsilon" in caplog.text


HOSTS: dict[str, Any] = {
    "videomae": OWN,
    "first": replace(OWN, pool="first", mlp_ratio=2.1, qv_bias=False),
    "attention": replace(OWN, pool="attention", positions="separable"),
    "clip": clip.Config(dim=16, depth=4, heads=2, patch=4, frames=4, size=8, adapters="space"),
    "fluxvit": fluxvit.Config(
        **{"dim": 16, "depth": 2, "heads": 2, "patch": 8, "frames": 4, "size": 16},
        **{"budgets": (16, 8), "pool_heads": 2, "features": 8},
    ),
}
CHAINS: dict[str, tuple[Any, ...]] = {
    "dense": (),
    "tome": (tome.Config(r=2, schedule="decreasing"),),
    "drop+rlt": (drop.Config(keep=0.7, seed=3), rlt.Config(tau=0.25, encode_length=True)),
    "inti": (inti.Config(halve_after=(1,)),),
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("host", "chain"),
    # A class token of the whole clip is of no frame: the one that InTI refuses.
    [(h, c) for h in HOSTS for c in CHAINS if (h, c) != ("fluxvit", "inti")],
)
def test_load_after_save_is_the_same_model(host: str, chain: str, tmp_path: Path) -> None:
    model = shaken(HOSTS[host].build(4, CHAINS[chain]))
    model.labels = ("a", "b", "c", "d")
    save(model, tmp_path / "one")
    one = load(tmp_path / "one")
    save(one, tmp_path / "two")
    two = load(tmp_path / "two")
    config = HOSTS[host]
    clip_BCTHW = torch.randn(2, 3, 4, config.size, config.size)
    for again in (one, two):
        assert bit_equal(again, model)
        assert (again.config, again.default) == (config, CHAINS[chain])
        assert again.labels == model.labels
        assert torch.equal(again(clip_BCTHW), model(clip_BCTHW))
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@torch.no_grad()
def test_a_chain_may_be_given_or_left_as_it_was_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learns = rlt.Config(tau=0.1, encode_length=True)
    save(shaken(OWN.build(4, (learns,))), tmp_path)
    stored = load(tmp_path)
    assert stored.default == (learns,)
    other = load(tmp_path, reducers=(replace(learns, tau=0.4),))
    assert bit_equal(other, stored)
    assert other.default[0] != learns
    plain = load(tmp_path, reducers=(tome.Config(r=2),))
    assert not plain.learned
    assert not caplog.records
    save(plain, tmp_path)
    assert load(tmp_path, reducers=(learns,)).learned
    assert "learned.rlt.* is not in it and starts new" in caplog.text


def test_a_chain_that_the_host_cannot_take_is_refused(tmp_path: Path) -> None:
    save(OWN.build(4), tmp_path)
    refused(tmp_path, "tome at block 0 needs", reducers=(*CHAINS["drop+rlt"], tome.Config(r=2)))
    save(HOSTS["fluxvit"].build(4), tmp_path)
    refused(tmp_path, "inti: a class token", reducers=CHAINS["inti"])


@torch.no_grad()
def test_the_first_token_that_is_left_of_each_clip_is_read() -> None:
    model = shaken(HOSTS["first"].build(4)).requires_grad_(False)
    clip_BCTHW = clips_for(theirs().config)
    clip_BCTHW[1, :, 2:] = clip_BCTHW[1, :, :2]  # so that the two clips keep unlike numbers
    chain = (rlt.Config(tau=0.1),)
    together_BK = model(clip_BCTHW, chain)
    alone_BK = torch.cat([model(one[None], chain) for one in clip_BCTHW])
    torch.testing.assert_close(together_BK, alone_BK, **CLOSE)


def test_the_units_of_the_preprocessor_are_the_hosts(tmp_path: Path) -> None:
    folder = saved(theirs(), tmp_path)
    says = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "do_rescale": True}
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(says | {"rescale_factor": 1 / 255}))
    model = load(folder)
    assert isinstance(model.config, videomae.Config)
    assert (model.config.mean, model.config.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert model.host.std == (0.1, 0.2, 0.3)
    path.write_text(json.dumps(says | {"rescale_factor": 1 / 127.5}))
    assert read(folder).config.std == pytest.approx((0.05, 0.1, 0.15))
    path.write_text(json.dumps(says | {"do_normalize": False}))
    assert read(folder).config.std == (1, 1, 1)
    path.write_text(json.dumps(says | {"size": {"height": 16, "width": 16}}))
    assert read(folder).fit == "crop"
    path.write_text(
        json.dumps(says | {"size": {"height": 16, "width": 16}, "do_center_crop": False})
    )
    assert read(folder).fit == "squash"


def test_without_a_preprocessor_the_usual_units_are_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(saved(theirs(), tmp_path)).config.mean == videomae.Config().mean
    assert "no preprocessor_config.json" in caplog.text


def test_clips_of_another_size_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(theirs(), tmp_path)
    says = {"crop_size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(says))
    assert read(folder).config.size == 16
    assert "clips of 224 px, but the model is for 16 px" in caplog.text
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": [1]}}))
    assert read(folder).config.size == 16


def test_a_head_that_does_not_fit_is_replaced_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(theirs(id2label={i: f"class {i}" for i in range(5)}), tmp_path)
    caplog.set_level(logging.WARNING)
    same, other = load(folder, num_classes=5), load(folder, num_classes=3)
    assert (same.num_classes, other.num_classes) == ((5,), (3,))
    assert (same.labels, other.labels) == (tuple(f"class {i}" for i in range(5)), ())
    assert "new head for 3 classes, it had 5" in caplog.text
    trunk = {name for name in same.state_dict() if not name.startswith("heads.")}
    assert all(torch.equal(same.state_dict()[n], other.state_dict()[n]) for n in trunk)
    save(HOSTS["fluxvit"].build(4), tmp_path / "flux")
    assert load(tmp_path / "flux", num_classes=6).num_classes == (6, 6)


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    model = OWN.build(4, (rlt.Config(encode_length=True),))
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match="is a file"):
        save(model, tmp_path / "file")
    model.default = ()
    with pytest.raises(Mistake, match="learned for rlt, not in its chain"):
        save(model, tmp_path)
    model.config = None
    with pytest.raises(Mistake, match="not of a host's Config"):
        save(model, tmp_path)
