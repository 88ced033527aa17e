"""MLflow is like the ledger again after a crash, after trials that were run twice, after a move."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator import summary, tracking
from orchestrator.__main__ import main
from orchestrator.files import write_json
from orchestrator.ledger import Ledger, Record
from orchestrator.lock import Lock
from orchestrator.tracking import EXPERIMENT, Mirror, Parent, default_uri
from search_spaces.objectives import GMACS, TOP1

KEY = "a1b2c3" + "0" * 58
PARENT = Parent("the front", [], {0: 0.5})

Front = Callable[..., tuple[int, dict[str, Any], str]]


def record(trial: int, top1: float = 0.8, **changes: Any) -> Record:
    values = {"top1": top1, "gmacs": 0.01 * (trial + 1)}
    made = Record(
        trial=trial,
        role="trial",
        params={"reducer": "drop", "keep": 0.5} if trial else {"reducer": "none"},
        values=values,
        state="complete",
        stage_keys=[f"{trial:064x}"],
        metrics={"val/top1": top1, "cost/gmacs": values["gmacs"]},
    )
    return replace(made, **changes)


def control(trial: int) -> Record:
    made = record(trial, 0.3)
    return replace(made, role="control", params=made.params | {"control": "drop"})


RECORDS = [record(0), record(1, 0.9), control(1)]


def study_in(store: Path) -> Path:
    """Write the study `mine` as a run leaves it, without MLflow; return its folder."""
    folder = store / "studies" / KEY
    folder.mkdir(parents=True)
    ledger = Ledger(folder / "ledger.jsonl")
    for one in RECORDS:
        ledger.append(one)
    uri = default_uri(store)
    facts = summary.facts_of(
        (TOP1, GMACS),
        name="mine",
        question="which?",
        key=KEY,
        store=str(store),
        workers=1,
        chance=0.125,
        val_clips=400,
        tracking={"uri": uri, "experiment": EXPERIMENT, "run_id": None},
    )
    write_json(folder / "study.json", facts)
    write_json(store / "store.json", {"version": 1})
    (store / "latest").mkdir()
    (store / "latest" / "mine").symlink_to(f"../studies/{KEY}")
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of MLflow with its tables; to make them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, empty: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(empty, folder / "mlflow.db")
    return folder


@pytest.fixture
def front(capsys: pytest.CaptureFixture[str]) -> Front:
    """Return exit code, JSON and stderr of `front`."""

    def run(*args: object) -> tuple[int, dict[str, Any], str]:
        code = main(["front", *map(str, args), "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]), said.err

    return run


def mirrored(store: Path, records: list[Record]) -> Mirror:
    mirror = Mirror(default_uri(store), store, "mine", KEY)
    assert mirror.connected() is not None
    assert mirror.finish(records, {1: 1}, PARENT) is None
    return mirror


def runs_in(store: Path) -> list[Run]:
    client = MlflowClient(default_uri(store))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id])
    return [run for run in found if "paretoken.trial" in run.data.tags]


def ids_in(store: Path) -> set[str]:
    return {run.info.run_id for run in runs_in(store)}


def test_a_run_that_a_crash_left_half_written_is_made_again(store: Path) -> None:
    mirror = mirrored(store, RECORDS[:1])
    client = MlflowClient(default_uri(store))
    (whole,) = runs_in(store)
    # What a crash between `create_run` and `log_batch` leaves: all tags, no metrics, RUNNING.
    half = client.create_run(whole.info.experiment_id, None, dict(whole.data.tags))
    client.delete_run(whole.info.run_id)
    mirrored(store, RECORDS[:1])
    (mended,) = runs_in(store)
    assert mended.info.run_id != half.info.run_id
    assert mended.info.status == "FINISHED"
    assert mended.data.metrics == RECORDS[0].metrics
    assert mended.data.tags["paretoken.parent"] == mirror.run_id


def test_a_trial_that_was_run_again_is_mirrored_once_and_for_good(store: Path) -> None:
    again = record(1, 0.7, stage_keys=["f" * 64])
    records = [*RECORDS, again]
    mirrored(store, RECORDS)
    mirrored(store, records)
    trials = {r.data.tags["paretoken.trial"]: r for r in runs_in(store) if _is_trial(r)}
    assert len(runs_in(store)) == 3
    assert trials["1"].data.metrics["val/top1"] == 0.7
    (below,) = (r for r in runs_in(store) if not _is_trial(r))
    assert below.data.tags["mlflow.parentRunId"] == trials["1"].info.run_id
    before = ids_in(store)
    mirrored(store, records)
    assert ids_in(store) == before


def _is_trial(run: Run) -> bool:
    return bool(run.data.tags["paretoken.role"] == "trial")


def test_a_tracker_that_does_not_answer_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking, "FINISH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        mirror = Mirror(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, "mine", KEY)
        assert mirror.connected() is None
        assert mirror.finish(RECORDS, {}, PARENT) == "it does not answer"
        assert time.monotonic() - begun < 3


def test_front_leaves_mlflow_to_the_driver_that_holds_the_study(store: Path, front: Front) -> None:
    folder = study_in(store)
    with Lock(folder / "driver.lock") as lock:
        assert lock.take()
        code, answer, said = front("mine", "--store", store)
    assert (code, len(answer["front"])) == (0, 2)
    assert "MLflow is left to process" in said
    assert (folder / "front.html").exists()
    assert MlflowClient(default_uri(store)).get_experiment_by_name(EXPERIMENT) is None
    assert front("mine", "--store", store)[0] == 0
    assert len(runs_in(store)) == 3


def test_a_copied_store_is_its_own(store: Path, front: Front, tmp_path: Path) -> None:
    study_in(store)
    assert front("mine", "--store", store)[0] == 0
    before, copy = ids_in(store), tmp_path / "copy"
    shutil.copytree(store, copy, symlinks=True)
    file = (store / "mlflow.db").read_bytes()
    for _ in range(2):
        code, answer, _ = front("mine", "--store", copy)
        assert code == 0
        assert answer["store"] == str(copy)
        assert answer["tracking"]["uri"] == default_uri(copy)
        run = MlflowClient(default_uri(copy)).get_run(answer["tracking"]["run_id"])
        assert run.info.artifact_uri.startswith((copy / "mlartifacts").as_uri())
        assert len(runs_in(copy)) == 3
    assert (store / "mlflow.db").read_bytes() == file
    copy.rename(tmp_path / "elsewhere")
    store.rename(copy)
    assert front("mine", "--store", copy)[0] == 0
    copy.rename(store)
    assert front("mine", "--store", store)[0] == 0
    assert ids_in(store) == before  # back where it was, it is as it was


def test_front_finds_a_study_by_its_file_or_by_the_name_that_it_had(
    store: Path, front: Front, tmp_path: Path
) -> None:
    study_in(store)
    file = tmp_path / "another_name.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from search_spaces import demo\n"
        "def study():\n"
        "    return replace(demo.study(), name='mine')\n"
    )
    for study in (file, tmp_path / "mine.py"):  # the second is gone
        code, answer, _ = front(study, "--store", store)
        assert (code, answer["study"]) == (0, "mine")
    code, _, said = front("mien", "--store", store)
    assert (code, 'did you mean "mine"' in said) == (2, True)
    code, _, said = front("dmeo", "--store", store)
    assert (code, 'did you mean "demo"' in said) == (2, True)


def test_front_reads_no_store_of_a_newer_version(store: Path, front: Front) -> None:
    study_in(store)
    write_json(store / "store.json", {"version": 10**6})
    code, _, said = front("mine", "--store", store)
    assert (code, "update paretoken" in said) == (2, True)


def test_front_of_failures_alone_says_why_the_first_failed(store: Path, front: Front) -> None:
    folder = study_in(store)
    (folder / "ledger.jsonl").unlink()
    reason = "evaluate: ValueError: the moon is full\nTraceback\n  line 3"
    failed = {"values": {}, "metrics": {}, "state": "failed", "reason": reason}
    Ledger(folder / "ledger.jsonl").append(record(0, **failed))
    code, answer, said = front("mine", "--store", store)
    assert code == 1
    assert "1 trials failed\n  trial 0: evaluate: ValueError: the moon is full\n" in said
    assert answer["points"][0]["reason"] == "evaluate: ValueError: the moon is full"
