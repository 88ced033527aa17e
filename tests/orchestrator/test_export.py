"""A point of a study leaves it as a folder, and labels the study's clips as the study did."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, Ended, environment, paretoken

from orchestrator import export
from orchestrator.__main__ import main
from orchestrator.files import read_json, write_json
from orchestrator.ledger import Ledger, Record
from orchestrator.lock import Lock
from orchestrator.store import Store
from workloads import pretrained
from workloads.predict import Answer, Predictor, found
from workloads.vit import VideoTransformer

Run = tuple[Path, Ended]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums in another order
NOBODY = "http://127.0.0.1:9"

SERVED = """
import json, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
names = [column.name for column in model.metadata.signature.outputs]
answer = model.predict(sys.argv[3:]).to_dict("list")
import workloads
print(json.dumps({"answer": answer, "outputs": names, "code": workloads.__file__}))
"""


@pytest.fixture(scope="module")
def exported(undisturbed: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The knee of the tiny study as a folder, and what the command said."""
    out = tmp_path_factory.mktemp("exported") / "deep" / "cheap"
    store = undisturbed[0]
    line = ("export", TINY, "--store", store, "--at", "knee", "--out", out, "--json")
    return out, paretoken(*line)


def records_of(store: Path) -> dict[int, Record]:
    return Ledger(store / "latest" / "tiny" / "ledger.jsonl").trials()


def recorded(store: Path, trial: int) -> dict[str, list[float]]:
    """Return the logits that the study recorded, by the name of the clip."""
    done = Store(store).find(records_of(store)[trial].stage_keys[-1])
    assert done is not None
    rows = pq.read_table(done.folder / "clips.parquet").to_pylist()
    return {row["clip"]: row["logits"] for row in rows}


def videos_of(store: Path) -> Path:
    """Return the folder of the study's videos."""
    (folder,) = (store / "data").glob("tiny-*")
    return folder


def assert_as_recorded(logits: dict[str, list[float]], store: Path, trial: int) -> None:
    """Check that all clips of the split have the study's labels and logits."""
    known = recorded(store, trial)
    assert logits.keys() == known.keys()
    ours, theirs = (torch.tensor([one[name] for name in sorted(known)]) for one in (logits, known))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert torch.equal(ours.argmax(dim=1), theirs.argmax(dim=1))


def test_the_folder_says_what_it_is_and_where_it_comes_from(
    undisturbed: Run, exported: tuple[Path, Ended]
) -> None:
    out, ended = exported
    assert ended.code == 0, ended.err
    answer, knee = ended.answer, undisturbed[1].answer["knee"]
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert answer["files"] == sorted(path.name for path in out.iterdir()) == names
    assert answer["point"]["trial"] == knee
    assert answer["check"]["difference"] <= 1e-5
    record, card = records_of(undisturbed[0])[knee], (out / "README.md").read_text()
    assert f"{100 * record.values['top1']:.1f} %" in card
    assert f"`cost/tokens` | {record.metrics['cost/tokens']:.6g}" in card
    assert f"`cost/gmacs` | {record.metrics['cost/gmacs']:.6g}" in card
    for word in ("paretoken export", "seeds: training 0", torch.__version__, "on cpu", "Latency"):
        assert word in card
    assert [p for p in out.parent.iterdir() if p != out] == []


def test_a_fresh_process_labels_the_clips_as_the_study_did(
    undisturbed: Run, exported: tuple[Path, Ended], tmp_path: Path
) -> None:
    store, first = undisturbed
    elsewhere = shutil.copytree(exported[0], tmp_path / "elsewhere")
    videos = videos_of(store)
    ended = paretoken("predict", elsewhere, videos / "val", "--json", "--batch", "5")
    assert ended.code == 0, ended.err
    *lines, total = map(json.loads, ended.out.splitlines())
    logits = {Path(one["path"]).relative_to(videos).as_posix(): one["logits"] for one in lines}
    assert_as_recorded(logits, store, first.answer["knee"])
    assert (total["videos"], total["labelled"], total["failed"]) == (len(lines), len(lines), 0)
    classes = list(read_json(elsewhere / "config.json")["id2label"].values())
    best = [classes[torch.tensor(one["logits"]).argmax()] for one in lines]
    assert [one["label"] for one in lines] == best


def test_mlflow_serves_the_same_from_code_of_its_own(
    undisturbed: Run, exported: tuple[Path, Ended], tmp_path: Path
) -> None:
    store, first = undisturbed
    logged, videos = exported[1].answer["mlflow"], videos_of(undisturbed[0])
    names = sorted(recorded(store, first.answer["knee"]))
    paths = [str(videos / name) for name in names]
    line = [sys.executable, "-c", SERVED, logged["uri"], logged["model_uri"], *paths, "nothing.mp4"]
    done = subprocess.run(
        line, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    served = json.loads(done.stdout.splitlines()[-1])
    assert served["outputs"] == ["label", "score", "logits", "error"]
    *logits, none = served["answer"]["logits"]
    assert_as_recorded(dict(zip(names, logits, strict=True)), store, first.answer["knee"])
    assert (none, served["answer"]["error"][-1]) == ([], "no such file")
    assert str(store) in served["code"]  # not that of the process that reads it
    assert list(tmp_path.iterdir()) == []


def test_labels_do_not_depend_on_the_batch(undisturbed: Run, exported: tuple[Path, Ended]) -> None:
    predictor, paths = Predictor(exported[0]), found([videos_of(undisturbed[0]) / "val"])
    one, *others = ([*predictor(paths, batch)] for batch in (1, 3, 16))

    def logits(answers: list[Answer]) -> torch.Tensor:
        return torch.tensor([answer.logits for answer in answers])

    for other in others:
        assert [a.label for a in other] == [a.label for a in one]
        torch.testing.assert_close(logits(other), logits(one), **CLOSE)


def test_without_mlflow_the_dense_trial_is_exported_all_the_same(
    undisturbed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder may be there
    line = ["export", "tiny", "--store", str(undisturbed[0]), "--at", "0", "--out", str(out)]
    assert main([*line, "--tracking-uri", NOBODY, "--json"]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out.splitlines()[-1])
    assert answer["mlflow"] is None
    assert "the folder is whole without it" in said.err
    assert answer["point"]["trial"] == 0
    assert pretrained.load(out).default == ()


def spoilt(model: VideoTransformer, *args: Any) -> None:
    """Save another model than the one that is given."""
    with torch.no_grad():
        model.heads[0].weight.add_(0.01)  # type: ignore[operator]
    SAVE(model, *args)


SAVE = pretrained.save


def test_a_folder_that_gives_other_logits_is_not_left_behind(
    undisturbed: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export.pretrained, "save", spoilt)
    out = tmp_path / "deep" / "out"
    line = ["export", "tiny", "--store", str(undisturbed[0]), "--at", "knee", "--out", str(out)]
    assert main(line) == 1
    assert "other logits than the study recorded" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Bad input.


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Check that a command ends with 2 and a line with its remedy; return what it said."""
    assert main([str(arg) for arg in args]) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    assert len(text.splitlines()) <= 8
    return text


def test_a_target_that_is_taken_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("export", "tiny", "--store", tmp_path / "never", "--at", "knee", "--out")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, *line, tmp_path / "file")
    assert "is a file" in refused(capsys, *line, tmp_path / "file" / "out")
    assert "not empty" in refused(capsys, *line, tmp_path)
    assert (tmp_path / "file").read_text() == ""


def test_a_study_that_was_never_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("export", "demo", "--store", tmp_path / "never", "--at", "knee", "--out")
    assert "paretoken run demo" in refused(capsys, *line, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("99", "trial 99 of tiny is not there"),
        ("gmacs<=0", "no point of the front of tiny keeps it"),
        ("speed<=1", "neither the knee nor a bound"),
    ],
)
def test_a_point_that_does_not_exist_is_refused(
    undisturbed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], at: str, words: str
) -> None:
    line = ("export", "tiny", "--store", undisturbed[0], "--at", at, "--out", tmp_path / "out")
    assert words in refused(capsys, *line)
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_what_is_needed_says_how_to_get_it(
    undisturbed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(undisturbed[0], tmp_path / "store", symlinks=True)
    line = ("export", "tiny", "--store", store, "--at", "0", "--out", tmp_path / "out")
    facts = store / "latest" / "tiny" / "study.json"
    known = read_json(facts)
    write_json(facts, {name: value for name, value in known.items() if name != "clips"})
    with Lock(facts.parent.resolve() / "driver.lock") as lock:
        assert lock.take()  # so MLflow, which would be made anew, is left alone
        assert "older version" in refused(capsys, *line)
        write_json(facts, known)
        (store / known["clips"]["cache"] / "view.json").unlink()
        assert "the frames of the clips" in refused(capsys, *line)
        shutil.rmtree(Store(store).stage(records_of(store)[0].stage_keys[0]))
        assert "its stages are not in" in refused(capsys, *line)
    assert not (tmp_path / "out").exists()
