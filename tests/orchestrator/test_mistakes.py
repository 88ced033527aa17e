"""Bad input: exit code 2, a clear line with the remedy, and nothing lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import paretoken
from ray.exceptions import RayTaskError
from tiny import study

from orchestrator import memory, store
from orchestrator.__main__ import main
from orchestrator.data import TooManyBad
from orchestrator.failures import explain
from orchestrator.jobs import Lost
from orchestrator.search import Halted
from workloads.datasets import synthetic

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command in this process; return its exit code and what it said on stderr."""

    def run(*args: object) -> tuple[int, str]:
        code = main([str(arg) for arg in args])
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with splits: 8 classes, 32 train, 16 val, 8 test."""
    config = study().data
    assert config is not None
    return synthetic.write(config, tmp_path_factory.mktemp("clips") / "clips")


@pytest.fixture
def loose(clips: Path, tmp_path: Path) -> Path:
    """Class folders without splits that a test may spoil."""
    folder = tmp_path / "loose"
    for name in ("right-slow", "left-slow"):
        shutil.copytree(clips / "train" / name, folder / name)
    return folder


def refused(answer: tuple[int, str], *words: str) -> None:
    """Check that a command named what is wrong, in a few lines and without a traceback."""
    code, text = answer
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2, text
    assert len(errors) == 1, text
    assert len(lines) <= 8
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


def test_missing_data_is_named(say: Say, tmp_path: Path) -> None:
    refused(say("run", "rlt_tau", "--data", tmp_path / "none", "--store", tmp_path), "none")


def test_a_study_without_clips_of_its_own_asks_for_data(say: Say, tmp_path: Path) -> None:
    refused(say("run", "rlt_tau", "--store", tmp_path), "needs --data")


def test_empty_data_is_named(say: Say, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        say("run", "demo", "--data", tmp_path / "empty", "--store", tmp_path / "s"), "no videos"
    )


def test_a_single_class_is_refused(say: Say, loose: Path, tmp_path: Path) -> None:
    shutil.rmtree(loose / "left-slow")
    refused(say("run", "demo", "--data", loose, "--store", tmp_path / "s"), "one class")


def test_a_class_without_val_clips_is_named(say: Say, clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(clips, folder)
    shutil.rmtree(folder / "val" / "up-quick")
    answer = say("run", "demo", "--data", folder, "--store", tmp_path / "s")
    refused(answer, "up-quick", "no val clips")


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(folder: Path) -> list[dict[str, str]]:
    paths = sorted(folder.rglob("*.mp4"))
    return [{"path": os.fspath(p.relative_to(folder)), "label": p.parent.name} for p in paths]


def test_a_csv_without_a_column_is_named(say: Say, loose: Path, tmp_path: Path) -> None:
    rows = [{"path": row["path"]} for row in rows_of(loose)]
    answer = say("run", "demo", "--data", table(loose / "a.csv", rows), "--store", tmp_path / "s")
    refused(answer, "label", "a.csv")


def test_a_csv_with_a_missing_file_is_named(say: Say, loose: Path, tmp_path: Path) -> None:
    rows = [*rows_of(loose), {"path": "gone.mp4", "label": "left-slow"}]
    answer = say("run", "demo", "--data", table(loose / "a.csv", rows), "--store", tmp_path / "s")
    refused(answer, "gone.mp4")


def test_a_csv_with_a_row_twice_is_named(say: Say, loose: Path, tmp_path: Path) -> None:
    rows = rows_of(loose)
    answer = say(
        "run", "demo", "--data", table(loose / "a.csv", [*rows, rows[0]]), "--store", tmp_path / "s"
    )
    refused(answer, rows[0]["path"])


def test_an_unknown_study_suggests_the_nearest(say: Say, tmp_path: Path) -> None:
    refused(say("run", "dmeo", "--store", tmp_path), 'did you mean "demo"')


def test_a_study_file_that_raises_shows_its_last_line(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "raises.py"
    file.write_text('raise RuntimeError("the moon is full")\n')
    refused(say("run", file, "--store", tmp_path), "the moon is full")
    file.write_text('def study():\n    raise RuntimeError("the tide is out")\n')
    refused(say("run", file, "--store", tmp_path), "the tide is out")
    file.write_text("def study(:\n")
    refused(say("run", file, "--store", tmp_path), "SyntaxError")


def test_a_study_file_without_study_is_named(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "without.py"
    file.write_text("x = 1\n")
    refused(say("run", file, "--store", tmp_path), "has no study()")
    refused(say("run", tmp_path / "none.py", "--store", tmp_path), "none.py")


@pytest.mark.parametrize("trials", ["0", "-3", "many", "1.5"])
def test_a_number_of_trials_below_one_is_refused(say: Say, tmp_path: Path, trials: str) -> None:
    refused(say("run", "demo", f"--trials={trials}", "--store", tmp_path), "--trials", trials)


def study_file(tmp_path: Path, *changes: str) -> Path:
    """Write a study file: the demo with some lines of change to its config."""
    file = tmp_path / "mine.py"
    lines = [
        "from dataclasses import replace",
        "from search_spaces import demo",
        "from search_spaces.space import Space, fix",
        "from workloads.reducers import rlt, tome",
        "def study():",
        "    made = demo.study()",
        *(f"    {change}" for change in changes),
        "    return made",
    ]
    file.write_text("\n".join(lines))
    return file


def test_frames_that_are_no_multiple_of_the_tubelet_are_refused(say: Say, tmp_path: Path) -> None:
    file = study_file(
        tmp_path,
        "train, measure = made.stages",
        "config = replace(train.config, clip=replace(train.config.clip, frames=15))",
        "train = replace(train, config=config)",
        "made = replace(made, stages=(train, replace(measure, inputs=(('weights', train),))))",
    )
    refused(say("run", file, "--store", tmp_path / "s"), "frames=15", "tubelet (2)", "14 frames")


def test_rlt_and_tome_in_one_chain_are_refused_and_why(say: Say, tmp_path: Path) -> None:
    file = study_file(
        tmp_path,
        "space = Space({'evaluate.reducers': fix(rlt.Config(tau=0.1), tome.Config(r=8))})",
        "made = replace(made, space=space)",
    )
    refused(
        say("run", file, "--store", tmp_path / "s"),
        "reducers=(rlt, tome)",
        "tome at block 0 needs the same number of tokens in every clip, rlt leaves them ragged",
        "legal here",
    )


def test_a_knob_that_does_not_exist_is_refused(say: Say, tmp_path: Path) -> None:
    file = study_file(tmp_path, "rlt.Config(tau=-0.5)")
    refused(say("run", file, "--store", tmp_path / "s"), "tau=-0.5")
    file = study_file(tmp_path, "made = replace(made, space=Space({'evaluate.nothing': fix()}))")
    refused(say("run", file, "--store", tmp_path / "s"), "nothing")
    file = study_file(tmp_path, "made = replace(made, sampler='oracle')")
    refused(say("run", file, "--store", tmp_path / "s"), "oracle", "tpe")


def test_a_store_of_a_newer_version_is_refused(say: Say, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"version": store.VERSION + 1}))
    refused(say("run", "demo", "--store", tmp_path), "version", "update paretoken")


def test_a_damaged_store_is_refused(say: Say, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{")
    refused(say("run", "demo", "--store", tmp_path), "store.json")


def test_a_store_that_is_a_file_is_refused(say: Say, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(say("run", "demo", "--store", tmp_path / "file"), "--store")


def test_front_of_a_study_that_was_never_run_is_refused(say: Say, tmp_path: Path) -> None:
    refused(say("front", "demo", "--store", tmp_path / "never"), "paretoken run demo")
    assert not (tmp_path / "never").exists()


def test_an_address_where_nobody_listens_is_refused_with_a_hint_at_tokens(
    say: Say, clips: Path, tmp_path: Path
) -> None:
    answer = say(
        "run", "demo", "--data", clips, "--address", "127.0.0.1:9", "--store", tmp_path / "s"
    )
    refused(answer, "127.0.0.1:9", "token")


def test_a_cluster_that_wants_a_token_which_is_not_here_is_refused(
    clips: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        line = ("run", "demo", "--data", clips, "--address", address, "--store", tmp_path / "s")
        ended = paretoken(*line, HOME=str(tmp_path), RAY_AUTH_MODE="token")
    assert ended.code == 2, ended.err
    assert f"--address {address}" in ended.err
    assert "RAY_AUTH_TOKEN" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("flag", ["--data", "--store"])
@pytest.mark.parametrize("path", ["", " "])
def test_a_path_of_nothing_is_refused(say: Say, flag: str, path: str) -> None:
    refused(say("run", "demo", flag, path), flag, "is no path")


@pytest.mark.parametrize("flag", ["--data", "--store", "--model"])
def test_a_path_that_ray_cannot_be_told_of_is_refused(say: Say, flag: str) -> None:
    refused(say("run", "demo", flag, os.fsdecode(b"x\xff")), flag, "'x\\xff' is not UTF-8")


def test_a_full_disk_is_told_wherever_it_stands_behind_an_error() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/s/stages")
    told = 2, "error: /s/stages: No space left on device\n  free space, or choose another --store"
    assert explain(full, []) == told
    by_ray = RayTaskError("decode", f"Traceback\n{full!r}", full, "worker", 1, "127.0.0.1")
    assert explain(by_ray, []) == told
    ended = RuntimeError("the search ended")
    ended.__cause__ = by_ray
    assert explain(ended, []) == told
    assert explain(RuntimeError(f"ray::decode()\nOSError: {full}\nmore"), []) == told


def test_what_may_not_be_read_has_a_remedy_of_its_own() -> None:
    code, text = explain(PermissionError(errno.EACCES, "Permission denied", "a.mp4"), [])
    assert (code, text) == (2, "error: a.mp4: Permission denied\n  check its permissions")


def test_an_error_of_ours_is_logged_in_a_file_even_where_none_can_be_written_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, temporary = tmp_path / "gone", tmp_path / "temporary"
    gone.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, text = explain(RuntimeError("the tide is out"), [])
    monkeypatch.chdir(tmp_path)
    (log,) = temporary.glob("paretoken-error-*.log")
    assert code == 1
    assert str(log) in text
    assert "the tide is out" in log.read_text()
    assert "Traceback" not in text
    assert "the tide is out" in capsys.readouterr().err


def test_only_what_goes_on_with_the_same_command_is_said_to() -> None:
    halted = Halted("no worker is left")
    assert explain(halted, ["run", "demo"])[1].endswith("Continue with: paretoken run demo")
    for error in (Lost("the head is gone"), TooManyBad("9 of 9 videos")):
        code, text = explain(error, ["submit", "demo"])
        assert (code, text) == (1, f"error: {error}")


def test_an_unknown_flag_is_refused(say: Say, tmp_path: Path) -> None:
    refused(say("run", "demo", "--learning-rate", "1", "--store", tmp_path), "--learning-rate")


def test_with_json_a_mistake_is_an_object_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["run", "dmeo", "--store", str(tmp_path), "--json"]) == 2
    assert 'did you mean "demo"' in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


def test_a_study_of_no_trials_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trials=0"):
        replace(study(), trials=0)


def test_a_journal_of_rubbish_does_not_lose_the_study(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    journal.write_text("rubbish without an end")
    assert len(memory.Memory(study(), journal)) == 0
