"""Checkpoint folders with something wrong in them: one clear message each, before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import OWN, edit, refused, rewrite, saved, theirs, weights_in

from workloads.mistakes import Mistake
from workloads.pretrained import load, load_pretraining, save


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    folder = saved(theirs(), tmp_path)
    weights = weights_in(folder)
    del weights["fc_norm.bias"]
    weights["more"] = torch.zeros(2)
    weights["classifier.bias"] = torch.zeros(6)
    rewrite(folder, weights)
    counts = "1 missing, 1 extra, 1 misshapen"
    lists = ("missing: fc_norm.bias", "extra: more", "classifier.bias (6,) instead of (5,)")
    refused(folder, "do not fit config.json", counts, *lists)
    edit(folder, num_hidden_layers=12)
    refused(folder, "missing: fc_norm.bias, videomae.encoder.layer.2.", "and 143 more")
    edit(folder, num_hidden_layers=2, use_mean_pooling=False)
    refused(folder, "missing: videomae.layernorm.weight", "extra: fc_norm.weight")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    folder = saved(theirs(), tmp_path)
    weights = weights_in(folder)
    weights["classifier.weight"][0, 0] = bad
    rewrite(folder, weights)
    refused(folder, "1 of 36 weights are not all finite", "classifier.weight")


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    folder = saved(theirs(), tmp_path)
    rewrite(folder, {name: weight.to(torch.int8) for name, weight in weights_in(folder).items()})
    refused(folder, "not all finite numbers")


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth"])
def test_pickles_are_refused_with_the_remedy(suffix: str, tmp_path: Path) -> None:
    folder = saved(theirs(), tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / f"pytorch_model.{suffix}")
    refused(folder, f"pytorch_model.{suffix}", "convert them to safetensors")


def test_a_pickle_beside_safetensors_is_not_touched(tmp_path: Path) -> None:
    folder = saved(theirs(), tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    load(folder)


def broken(make: Callable[[Path], None], *words: str) -> Any:
    return pytest.param(make, words, id=words[0].replace(" ", "_"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        broken(lambda d: (d / "config.json").unlink(), "no config.json"),
        broken(lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
        broken(lambda d: _write(d, "config.json", "{"), "config.json: cannot be read"),
        broken(lambda d: _write(d, "config.json", "[]"), "is no JSON object"),
        broken(lambda d: _write(d, "model.safetensors", "x"), "model.safetensors: cannot be read"),
        broken(lambda d: _write(d, "preprocessor_config.json", "?"), "preprocessor_config.json:"),
        broken(lambda d: edit(d, architectures=["ViTModel"]), "'ViTModel' is not", "CLIPVision"),
        broken(lambda d: edit(d, architectures=[]), "'videomae' is not supported", "VideoMAEFor"),
        broken(lambda d: edit(d, hidden_size=0), "hidden_size=0 must be a whole number"),
        broken(lambda d: edit(d, hidden_size="24"), "hidden_size='24' must be"),
        broken(lambda d: edit(d, num_attention_heads=5), "dim=24 must be a multiple of heads=5"),
        broken(lambda d: edit(d, image_size=[16, 32]), "image_size=[16, 32] must be the side"),
        broken(lambda d: edit(d, hidden_act="relu"), "hidden_act='relu' must be 'gelu'"),
        broken(lambda d: edit(d, num_channels=1), "num_channels=1 must be 3"),
        broken(lambda d: edit(d, layer_norm_eps=-1), "layer_norm_eps=-1 must be"),
        broken(lambda d: edit(d, use_mean_pooling=1), "use_mean_pooling=1 must be true"),
        broken(lambda d: edit(d, id2label={"0": "a", "7": "b"}), "id2label must name"),
        broken(lambda d: edit(d, id2label={"0": "a"}), "names 1 classes, the head has 5"),
        broken(lambda d: edit(d, paretoken={"version": 99}), "is not of version 1"),
    ],
)
def test_a_folder_that_cannot_be_read_is_said(
    make: Callable[[Path], None], words: tuple[str, ...], tmp_path: Path
) -> None:
    folder = saved(theirs(), tmp_path)
    make(folder)
    refused(folder, *words)


def _write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("says", "word"),
    [
        ({"image_std": [1, 1]}, "image_std=[1, 1] must be three numbers"),
        ({"image_std": [1, 1, 0]}, "must be above 0"),
        ({"image_mean": ["a", 1, 1]}, "must be three numbers"),
        ({"rescale_factor": 0}, "rescale_factor=0"),
        ({"image_std": [1, 1, 10**400]}, "must be three numbers"),
        ({"rescale_factor": "1"}, "rescale_factor='1' must be"),
    ],
)
def test_units_that_cannot_be_are_refused(says: Any, word: str, tmp_path: Path) -> None:
    folder = saved(theirs(), tmp_path)
    _write(folder, "preprocessor_config.json", json.dumps(says))
    refused(folder, word)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"chain": [{"reducer": "os", "system": "true"}]}, "reducer='os' does not exist"),
        ({"chain": [{"reducer": "base"}]}, "reducer='base' does not exist"),
        ({"chain": [{"reducer": "rlt", "speed": 1}]}, "rlt: no field speed"),
        ({"chain": [{"reducer": "rlt", "tau": "0.1"}]}, "rlt.tau='0.1' is of another type"),
        ({"chain": [{"reducer": "rlt", "tau": -3}]}, "tau=-3"),
        ({"chain": {"reducer": "rlt"}}, "must be a list"),
        ({"chain": ["rlt"]}, "reducer=None does not exist"),
        ({"host": {"kind": "subprocess.Popen"}}, "kind='subprocess.Popen' does not exist"),
        ({"host": {"kind": "videomae", "pool": "max"}}, "pool='max' is of another type"),
        ({"host": {"kind": "videomae", "mean": [1, 2]}}, "mean=[1, 2] is of another type"),
        ({"host": {"kind": "videomae", "dim": True}}, "dim=True is of another type"),
    ],
)
def test_a_chain_or_host_that_does_not_exist_is_refused(
    entry: Any, word: str, tmp_path: Path
) -> None:
    save(OWN.build(4), tmp_path)
    ours = json.loads((tmp_path / "config.json").read_text())["paretoken"]
    edit(tmp_path, paretoken=ours | entry)
    refused(tmp_path, word)


def test_a_config_that_says_two_things_is_refused(tmp_path: Path) -> None:
    save(OWN.build(4), tmp_path)
    edit(tmp_path, layer_norm_eps=1e-12)
    refused(tmp_path, "norm_eps=1e-12, but paretoken.host says 1e-06")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "other.safetensors"])
def test_shards_lie_in_the_folder(name: str, tmp_path: Path) -> None:
    folder = saved(theirs(), tmp_path / "in")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"classifier.weight": name}}
    _write(folder, "model.safetensors.index.json", json.dumps(index))
    refused(folder, "1 of them not here", name)


def test_what_needs_a_number_of_classes_says_so(tmp_path: Path) -> None:
    folder = saved(theirs("CLIPVisionModel", image_size=16, patch_size=4), tmp_path)
    refused(folder, "has no head", "num_classes")
    refused(folder, "num_classes=0 must be 1 or more", num_classes=0)
    refused(tmp_path / "nowhere", "no such folder")
    with pytest.raises(Mistake, match="has no decoder"):
        load_pretraining(folder)
