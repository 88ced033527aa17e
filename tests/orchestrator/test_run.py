"""One true study from the command line to its front, and the same again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from conftest import TINY, Ended, paretoken
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

Run = tuple[Path, Ended]


def ledger_of(store: Path) -> list[dict[str, Any]]:
    (path,) = store.glob("studies/*/ledger.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def journal_of(store: Path) -> list[optuna.trial.FrozenTrial]:
    (path,) = store.glob("studies/*/journal.log")
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=None, storage=storage).trials


def mirrored(answer: dict[str, Any]) -> dict[int, mlflow.entities.Run]:
    """Return the children of a study's parent run that stand for trials, by trial."""
    client = mlflow.MlflowClient(answer["tracking"]["uri"])
    parent = client.get_run(answer["tracking"]["run_id"])
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    runs = client.search_runs([parent.info.experiment_id], query)
    return {int(run.data.tags["paretoken.trial"]): run for run in runs}


def test_a_study_ends_with_a_front_of_trials_that_all_stand_in_the_ledger(undisturbed: Run) -> None:
    store, ended = undisturbed
    assert ended.code == 0, ended.err
    answer = ended.answer
    assert answer["trials"] == {"complete": 6, "failed": 0, "pruned": 0}
    assert answer["knee"] in {point["trial"] for point in answer["front"]}
    trials = [line for line in ledger_of(store) if line["role"] == "trial"]
    assert [line["trial"] for line in trials] == list(range(6))
    assert trials[0]["params"] == {"finetune.reducer": "none", "reducer": "none"}
    for point in answer["points"]:
        assert point["values"] == trials[point["trial"]]["values"]


def test_journal_and_mlflow_agree_with_the_ledger(undisturbed: Run) -> None:
    store, ended = undisturbed
    trials = {line["trial"]: line for line in ledger_of(store) if line["role"] == "trial"}
    journal = journal_of(store)
    assert len(journal) == len(trials)
    for trial in journal:
        values = trials[trial.number]["values"]
        assert trial.values == [values["top1"], values["gmacs"]]
        assert trial.params == trials[trial.number]["asked"]
    runs = mirrored(ended.answer)
    assert sorted(runs) == sorted(trials)
    for number, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.metrics["val/top1"] == trials[number]["values"]["top1"]
        assert run.data.metrics["cost/gmacs"] == trials[number]["values"]["gmacs"]
        assert run.data.params["reducer"] == trials[number]["params"]["reducer"]


def test_the_parent_run_shows_the_front_as_figure_table_and_text(undisturbed: Run) -> None:
    _, ended = undisturbed
    tracking = ended.answer["tracking"]
    client = mlflow.MlflowClient(tracking["uri"])
    files = {file.path for file in client.list_artifacts(tracking["run_id"])}
    assert {"front.html", "front.csv", "front.json", "front.png"} <= files
    parent = client.get_run(tracking["run_id"])
    assert "| top-1 |" in parent.data.tags["mlflow.note.content"]
    assert parent.data.metrics["hypervolume"] == pytest.approx(ended.answer["hypervolume"])


def test_controls_are_measured_at_the_tokens_of_their_point(undisturbed: Run) -> None:
    answer = undisturbed[1].answer
    tokens = {point["trial"]: point["tokens"] for point in answer["points"]}
    drops = [c for c in answer["controls"] if c["params"]["control"] == "drop"]
    for control in drops:
        assert abs(control["tokens"] - tokens[control["of"]]) <= 0.5  # rounded to whole tokens


def test_a_second_run_finds_everything_and_runs_nothing(undisturbed: Run) -> None:
    store, first = undisturbed
    again = paretoken("run", TINY, "--store", store, "--json")
    assert again.code == 0, again.err
    assert again.answer["call"]["stages_run"] == 0
    assert again.answer["call"]["trials_reused"] == 6
    for name in ("front", "controls", "points", "knee", "hypervolume", "study_s"):
        assert again.answer[name] == first.answer[name]


def test_front_prints_one_point_and_says_when_there_is_none(undisturbed: Run) -> None:
    store, first = undisturbed
    knee = paretoken("front", "tiny", "--store", store, "--at", "knee", "--json")
    assert knee.code == 0
    assert knee.answer["point"]["trial"] == first.answer["knee"]
    none = paretoken("front", "tiny", "--store", store, "--at", "gmacs<=0", "--json")
    assert none.code == 1
    assert none.answer["point"] is None


def test_more_trials_go_on_with_the_same_study(undisturbed: Run, tmp_path: Path) -> None:
    first, store = undisturbed[1], tmp_path / "store"
    shutil.copytree(undisturbed[0], store, symlinks=True)  # others compare with the first run
    more = paretoken("run", TINY, "--store", store, "--trials", 7, "--json")
    assert more.code == 0, more.err
    assert more.answer["study_key"] == first.answer["study_key"]
    assert more.answer["points"][:6] == first.answer["points"]
    assert more.answer["trials"]["complete"] == 7


def test_ranks_that_do_not_divide_the_batch_are_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    refused = paretoken("run", TINY, "--store", tmp_path / "store", "--ranks", 3)
    assert refused.code == 2
    assert "--ranks 3: the batch of 'tiny', 8 clips" in refused.err
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_mlflow_that_is_down_costs_the_study_nothing_and_is_made_up_for(
    undisturbed: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store, symlinks=True)
    down = "http://127.0.0.1:9"
    ended = paretoken(
        "run", TINY, "--store", store, "--trials", 7, "--tracking-uri", down, "--json"
    )
    assert ended.code == 0, ended.err
    assert f"warning: MLflow at {down}" in ended.err
    assert ended.answer["trials"]["complete"] == 7
    uri = f"sqlite:///{store / 'mlflow.db'}"
    repaired = paretoken("front", "tiny", "--store", store, "--tracking-uri", uri, "--json")
    assert repaired.code == 0, repaired.err
    assert sorted(mirrored(repaired.answer)) == list(range(7))


@pytest.mark.slow
@pytest.mark.parametrize("several", ["--workers", "--ranks"])
def test_two_groups_or_two_ranks_share_two_cores_without_a_hang(
    several: str, tmp_path: Path
) -> None:
    ended = paretoken("run", TINY, "--store", tmp_path / "store", several, 2, "--json", timeout=180)
    assert ended.code == 0, ended.err
    assert ended.answer["trials"] == {"complete": 6, "failed": 0, "pruned": 0}
    assert "WARNING" not in ended.err
