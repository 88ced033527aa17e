"""A race the whole way: command, Ray, MLflow, export; and killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT, Ended, command, environment, paretoken
from test_run import mirrored

from orchestrator import export, summary
from orchestrator.ledger import Ledger

pytestmark = pytest.mark.slow  # `test_racer` has the same without Ray

RACED = Path(__file__).with_name("raced.py")
DEADLINE_S = 200
Run = tuple[Path, Ended]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = tmp_path_factory.mktemp("raced") / "store"
    return store, paretoken("run", RACED, "--store", store, "--json")


def finished_stages(store: Path) -> dict[str, str]:
    marks = store.glob("stages/*/*/DONE")
    return {mark.parent.name: json.loads(mark.read_text())["attempt"] for mark in marks}


def test_a_race_ends_with_a_front_of_whole_trials(whole: Run) -> None:
    _, ended = whole
    assert ended.code == 0, ended.err
    answer = ended.answer
    assert answer["trials"]["failed"] == 0
    assert answer["trials"]["pruned"] > 0
    assert sum(answer["trials"].values()) == 12
    states = {point["trial"]: point["state"] for point in answer["points"]}
    assert {states[point["trial"]] for point in answer["front"]} == {"complete"}
    assert "rung 1 of 4, 11 in the race" in ended.err
    words = f"12 configurations for {answer['passes']:.1f} dense passes"
    assert words in ended.err


def test_passes_are_the_macs_of_all_evaluations(whole: Run) -> None:
    store, ended = whole
    (ledger,) = store.glob("studies/*/ledger.jsonl")
    records = Ledger(ledger).trials()
    spent = [r.metrics["cost/gmacs"] * r.metrics["val/clips"] for r in records.values()]
    assert ended.answer["passes"] == pytest.approx(sum(spent) / spent[0])
    assert 1 < ended.answer["passes"] < len(records)


def test_mlflow_knows_who_was_stopped(whole: Run) -> None:
    answer = whole[1].answer
    status = {"complete": "FINISHED", "pruned": "KILLED"}
    runs = mirrored(answer)
    for point in answer["points"]:
        assert runs[point["trial"]].info.status == status[point["state"]]


def test_a_point_of_a_race_is_exported(whole: Run, tmp_path: Path) -> None:
    """Its evaluation is several stages; what it evaluates is found all the same."""
    store, ended = whole
    folder = summary.latest(store, "raced")
    point = next(p for p in ended.answer["front"] if p["params"]["reducer"] != "none")
    record = Ledger(folder / "ledger.jsonl").trials()[point["trial"]]
    made = {**ended.answer, "store": str(store)}
    source = export._source(made, folder, record, "raced")
    (tmp_path / "draft").mkdir()
    assert export.write(source, tmp_path / "draft").is_close


def test_a_race_that_is_over_runs_nothing(whole: Run) -> None:
    store, ended = whole
    again = paretoken("run", RACED, "--store", store, "--json")
    assert again.answer["points"] == ended.answer["points"]
    assert again.answer["call"]["stages_run"] == 0
    assert "ray " not in again.err


def test_a_race_that_was_killed_ends_like_one_that_was_not(whole: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole[0] / "data", store / "data")
    (training,) = (p for p in whole[0].glob("stages/*/*") if any(p.glob("attempt-*/weights*")))
    shutil.copytree(training, store / training.relative_to(whole[0]))
    driver = subprocess.Popen(
        command("run", RACED, "--store", store),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + DEADLINE_S
    while len(finished_stages(store)) < 18 and time.monotonic() < end:  # in the second rung
        assert driver.poll() is None, "the run ended before the moment came"
        time.sleep(0.01)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert time.monotonic() < end
    before = finished_stages(store)
    ended = paretoken("run", RACED, "--store", store, "--workers", 2, "--json")
    assert ended.code == 0, ended.err
    assert ended.answer["points"] == whole[1].answer["points"]
    assert before.items() <= finished_stages(store).items(), "a finished stage was run again"
