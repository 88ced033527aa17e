"""`--model`: a folder that cannot be used is refused in a line, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import paretoken
from safetensors.torch import load_file, save_file

from orchestrator import checkpoint, data
from orchestrator.__main__ import main
from orchestrator.store import Store
from search_spaces import inference
from workloads import cache, clips, pretrained, sampling
from workloads.datasets import synthetic
from workloads.models import clip, videomae

Say = Callable[..., str]
HOST = videomae.Config(dim=16, depth=2, heads=2, patch=8, frames=8, size=32, pool_eps=1e-5)
SHOWN = sampling.Config(clip=clips.Config(frames=8, stride=1.0, size=32))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with splits, of clips of 8 frames."""
    config = synthetic.Config(train=0, val=16, test=8, side=32, frames=8)
    return synthetic.write(config, tmp_path_factory.mktemp("videos") / "clips")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint for 8 classes without names."""
    pretrained.save(HOST.build(8), tmp_path / "model", SHOWN)
    return tmp_path / "model"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, videos: Path) -> Say:
    """Run the study on a checkpoint; it must be refused, and what it says is returned."""

    def refused(model: Path, study: str = "inference", data: Path = videos) -> str:
        line = ["run", study, "--model", str(model), "--data", str(data)]
        code = main([*line, "--store", str(tmp_path / "store")])
        told = capsys.readouterr().err
        assert code == 2
        assert told.splitlines()[-2].startswith("error: ")
        assert len(told.splitlines()) <= 8
        assert "Traceback" not in told
        return told

    return refused


def test_a_study_of_a_model_needs_one(capsys: pytest.CaptureFixture[str], videos: Path) -> None:
    assert main(["run", "inference", "--data", str(videos)]) == 2
    assert "error: study 'inference' needs --model DIR" in capsys.readouterr().err


def test_a_folder_that_is_no_checkpoint(say: Say, folder: Path, tmp_path: Path) -> None:
    assert f"--model {tmp_path / 'no'}: no such folder" in say(tmp_path / "no")
    config = folder / "config.json"
    whole = config.read_text()
    config.write_text(json.dumps({"architectures": ["TimesformerForVideoClassification"]}))
    assert "VideoMAEForVideoClassification" in say(folder)
    config.unlink()
    assert f"--model {folder}: no config.json" in say(folder)
    config.write_text(whole)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in say(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "no model.safetensors" in say(folder)


def test_weights_that_are_no_numbers_or_do_not_fit(say: Say, folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    some = next(iter(weights))
    save_file(weights | {some: torch.full_like(weights[some], torch.nan)}, path)
    assert "--model" in (told := say(folder))
    assert "not all finite numbers" in told
    save_file({name: w for name, w in weights.items() if name != some}, path)
    assert f"--model {folder}: weights do not fit config.json: 1 missing" in say(folder)


def test_a_study_that_has_no_place_for_the_model(say: Say, folder: Path, tmp_path: Path) -> None:
    assert "'flux_budget' starts from a fluxvit" in say(folder, "flux_budget")
    pretrained.save(
        clip.Config(dim=16, depth=1, heads=2, patch=8, size=32).build(8), tmp_path / "c"
    )
    assert "starts from a videomae" in say(tmp_path / "c", "rlt_tau")


def test_labels_that_are_not_those_of_the_model(say: Say, folder: Path, videos: Path) -> None:
    model = HOST.build(2)
    model.labels = ("run", "jump")
    pretrained.save(model, folder, SHOWN)
    assert "--data: the model has no label 'down-quick', 'down-slow'" in say(folder)
    mixed = videos.parent / "mixed.csv"
    names = sorted(path.relative_to(videos.parent) for path in videos.rglob("*.mp4"))[:6]
    rows = [f"{name},{'run' if i % 2 else ''}" for i, name in enumerate(names)]
    mixed.write_text("\n".join(["path,label", *rows]))
    assert "3 of 6 clips have no label" in say(folder, data=mixed)
    assert "no videos" in say(folder, data=folder)


def test_videos_that_are_shorter_than_a_clip_are_counted(tmp_path: Path) -> None:
    lengths = {"long": 9, "short": 3, "bad": 0}
    entries = [
        cache.Entry(i, name, 0, "val", frames=num, reason="" if num else "no frames")
        for i, (name, num) in enumerate(lengths.items())
    ]
    cache.publish(tmp_path, entries, ("a",))
    assert data.told_short(tmp_path, 9) == (
        "1 of 2 videos have fewer than the 9 frames that a clip spans: their last frame repeats"
    )
    assert data.told_short(tmp_path, 3) == ""


def test_a_checkpoint_is_in_the_store_once_whatever_the_clips(folder: Path, tmp_path: Path) -> None:
    store, source = Store.open(tmp_path / "store"), pretrained.described(folder)
    study = inference.study(source)
    for digest in ("one", "other", "one"):
        checkpoint.put(study, folder, store, digest)
    (done,) = (store.root / "stages").glob("*/*/DONE")
    found = store.find(done.parent.name)
    assert found is not None
    weights = load_file(found.weights)
    assert {*weights} == {*pretrained.load(folder).state_dict()}


@pytest.mark.slow
def test_a_checkpoint_and_clips_without_labels_become_a_cheaper_folder(
    folder: Path, videos: Path, tmp_path: Path
) -> None:
    """In: a folder and videos. Out: a folder that labels them as the study did, cheaper."""
    flat, out = tmp_path / "flat", tmp_path / "cheaper"
    flat.mkdir()
    for number, path in enumerate(sorted(videos.rglob("*.mp4"))):
        (flat / f"{number:02}.mp4").symlink_to(path)
    store = ("--store", tmp_path / "store", "--json")
    given = ("--model", folder, "--data", flat, "--trials", 8)
    ran = paretoken("run", "inference", *given, *store)
    assert ran.code == 0, ran.err
    assert "no labels" in ran.err
    assert [o["name"] for o in ran.answer["objectives"]] == ["agreement", "gmacs"]
    assert ran.answer["dense"]["values"]["agreement"] == 1
    assert [p["params"]["reducer"] for p in ran.answer["points"]][:3] == ["none", "rlt", "tome"]
    at = ran.answer["front"][0]["trial"]
    wrote = paretoken("export", "inference", "--at", at, "--out", out, *store)
    assert wrote.code == 0, wrote.err
    assert wrote.answer["check"]["difference"] <= 1e-5
    told = paretoken("predict", out, flat, "--json")
    assert told.code == 0, told.err
    answers = [json.loads(line) for line in told.out.splitlines()[:-1]]
    assert len(answers) == len([*flat.iterdir()])
    assert all(answer["label"].startswith("LABEL_") for answer in answers)
