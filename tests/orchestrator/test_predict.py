"""Videos through a saved model: which ones, what they are shown, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.__main__ import main
from workloads import clips, pretrained, readers, sampling
from workloads.datasets import synthetic
from workloads.folder import read
from workloads.knobs import canonical
from workloads.layouts import HOSTS, of_canonical, sampling_as_json, sampling_of_json
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.predict import Predictor, found
from workloads.reducers import available, drop, load, rlt

HOST = videomae.Config(dim=16, depth=2, heads=2, patch=8, frames=8, size=32)
CLIP = clips.Config(frames=8, stride=2.0, size=32)
SHOWN = sampling.Config(clip=CLIP, short_side=64, views=2, seed=3)
CLASSES = ("left", "right", "up")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen videos of 8 frames, and one of no frames, in folders."""
    config = synthetic.Config(train=8, val=8, test=8, side=32, frames=8)
    folder = synthetic.write(config, tmp_path_factory.mktemp("videos") / "videos")
    (folder / "val" / "zz-bad.mp4").write_bytes(b"no video at all")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with RLT that is shown two views of each video."""
    return saved(tmp_path / "model", SHOWN, rlt.Config(tau=0.1))


def saved(path: Path, shown: sampling.Config | None, *chain: object) -> Path:
    model = HOST.build(len(CLASSES), chain, seed=1)  # type: ignore[arg-type]
    model.labels = CLASSES
    pretrained.save(model, path, shown)
    return path


@pytest.mark.parametrize("name", available())
def test_a_reducer_comes_back_from_the_json_of_its_stage(name: str) -> None:
    config = load(name).Config()
    assert of_canonical(json.loads(json.dumps(canonical(config))), "here") == config


def test_hosts_clips_and_sampling_come_back_from_json() -> None:
    for config in (*(kind() for kind in HOSTS.values()), CLIP):
        assert of_canonical(json.loads(json.dumps(canonical(config))), "here") == config
    as_json = json.loads(json.dumps(sampling_as_json(SHOWN)))
    assert sampling_of_json(as_json, "here") == SHOWN
    with pytest.raises(Mistake, match=r"type='os\.system' does not exist"):
        of_canonical({"type": "os.system"}, "here")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"views": 0}, "views=0"),
        ({"clip": {"frames": "8"}}, "frames='8' is of another type"),
        ({"clip": 8}, "clip=8 is of another type"),
        ({"crop": 1}, "no field crop"),
        ([], "must be an object"),
    ],
)
def test_a_damaged_entry_on_sampling_is_refused(folder: Path, entry: object, words: str) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["paretoken"]["sampling"] = entry
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(Mistake) as caught:
        Predictor(folder)
    assert words in caught.value.what


def test_the_preprocessor_makes_squares_as_the_clips_are_made(folder: Path, tmp_path: Path) -> None:
    says = json.loads((folder / "preprocessor_config.json").read_text())
    assert (says["size"], says["do_center_crop"]) == ({"height": 32, "width": 32}, False)
    assert read(folder).fit == "squash"
    cropped = replace(SHOWN, clip=replace(CLIP, fit="crop"))
    says = json.loads((saved(tmp_path / "c", cropped) / "preprocessor_config.json").read_text())
    assert (says["size"], says["do_center_crop"]) == ({"shortest_edge": 32}, True)


def test_views_are_averaged_as_probabilities(videos: Path, tmp_path: Path) -> None:
    slow = replace(SHOWN, clip=replace(CLIP, stride=0.5))  # spans half of a video
    predictor, (path,) = Predictor(saved(tmp_path / "slow", slow)), found([videos / "val"])[:1]
    (answer,) = predictor([path])
    one, two = predictor.views_of(readers.read(path))
    assert (one != two).any()
    logits_VK = torch.cat([predictor.logits([np.stack([view, view])]) for view in (one, two)])
    mean_K = logits_VK.softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(torch.tensor(answer.logits).exp(), mean_K, rtol=1e-5, atol=1e-6)
    assert answer.score == pytest.approx(float(mean_K.max()), abs=1e-6)


def test_a_chain_that_draws_gives_a_video_one_answer_wherever_it_stands(
    videos: Path, tmp_path: Path
) -> None:
    predictor = Predictor(saved(tmp_path / "drawn", SHOWN, drop.Config(keep=0.5)))
    paths = [path for path in found([videos / "val"]) if path.name != "zz-bad.mp4"]
    forth = {a.path: a.logits for a in predictor(paths, batch=3)}
    back = {a.path: a.logits for a in predictor(paths[::-1], batch=4)}
    for path, logits in forth.items():
        assert logits == pytest.approx(back[path], abs=1e-5)


def test_folders_files_and_lists_are_found(videos: Path, tmp_path: Path) -> None:
    whole = found([videos / "val"])
    assert len(whole) == 9
    assert whole == sorted(whole)
    (tmp_path / "list.txt").write_text(f"{whole[0]}\n\n{whole[1]}\n")
    (tmp_path / "list.csv").write_text(f"label,path\nx,{whole[2]}\n")
    given = [tmp_path / "list.txt", tmp_path / "list.csv", whole[3], tmp_path / "gone.mp4"]
    assert found(given) == [*whole[:4], tmp_path / "gone.mp4"]


def test_lists_and_folders_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="no videos"):
        found([tmp_path])
    (tmp_path / "none.csv").write_text("label\nx\n")
    with pytest.raises(Mistake, match="has no path"):
        found([tmp_path / "none.csv"])
    with pytest.raises(Mistake, match="No such file"):
        found([tmp_path / "gone.txt"])
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Mistake, match="no UTF-8"):
        found([tmp_path / "bytes.txt"])


# The command.


def test_a_bad_video_is_reported_and_a_short_one_said_once(
    folder: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder), str(videos / "val"), "gone.mp4", "--json"]) == 0
    said = capsys.readouterr()
    *lines, total = map(json.loads, said.out.splitlines())
    bad = {Path(one["path"]).name: one["error"] for one in lines if "error" in one}
    assert bad.keys() == {"zz-bad.mp4", "gone.mp4"}
    assert bad["gone.mp4"] == "no such file"
    counts = {"videos": 10, "labelled": 8, "failed": 2, "short": 8}
    assert total == {"model": str(folder), **counts}
    assert said.err.count("a clip spans 15") == 1
    assert said.err.count("gone.mp4: no such file") == 1


def test_for_people_a_video_is_a_line(
    folder: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder), str(videos / "val")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all(line.split()[1] == "%" and line.split()[2] in CLASSES for line in lines)


def test_without_one_label_the_command_failed(
    folder: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["predict", str(folder), str(videos / "val" / "zz-bad.mp4"), "--json"]
    assert main(line) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["labelled"] == 0


def test_a_folder_of_others_is_read_with_the_usual_sampling_and_that_is_said(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "theirs", None)
    assert main(["predict", str(folder), str(videos / "val")]) == 0
    assert "says nothing of sampling; 8 frames at stride 4, 32 px (crop)" in capsys.readouterr().err


def spoil(folder: Path, how: str) -> None:
    if how == "gone":
        shutil.rmtree(folder)
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "not ours":
        (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "misfit":
        weights = load_file(folder / "model.safetensors")
        weights.pop(sorted(weights)[0])
        save_file(weights, folder / "model.safetensors")
    else:
        values = json.loads((folder / "config.json").read_text())
        values["paretoken"]["sampling"] |= json.loads(how)
        (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("gone", "no such folder"),
        ("no config", "no config.json"),
        ("not ours", "'BertModel' is not supported"),
        ("no weights", "no model.safetensors"),
        ("misfit", "weights do not fit config.json: 1 missing"),
        ('{"head": 2}', "head=2 of a model with 1"),
        ('{"clip": {"frames": 7, "size": 32}}', "frames=7"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    folder: Path, videos: Path, how: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder, how)
    assert main(["predict", str(folder), str(videos / "val")]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.count("error: ") == 1
    assert "Traceback" not in text
