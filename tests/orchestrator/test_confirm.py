"""The front again: on other seeds, on other clips, timed; through a kill, and then not again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import ROOT, Ended, command, environment, paretoken
from tiny import study

from orchestrator import confirmed, stages, summary, verdict
from orchestrator.__main__ import main
from orchestrator.card import confirmation
from orchestrator.confirmation import Confirmation
from orchestrator.files import read_json, write_json
from orchestrator.ledger import Ledger
from orchestrator.report import write
from orchestrator.stages import StageFailed
from orchestrator.store import Store
from orchestrator.words import Axes
from search_spaces.space import Space
from search_spaces.study import Stage
from workloads import evaluate, load, timing
from workloads.clips import open_clips
from workloads.reducers import drop, rlt

Run = tuple[Path, Ended]
SEEDS = (1000, 2000)
DEADLINE_S = 240


def finished(store: Path) -> dict[str, str]:
    """Return which attempt counts, for each finished stage."""
    marks = store.glob("stages/*/*/DONE")
    return {mark.parent.name: json.loads(mark.read_text())["attempt"] for mark in marks}


def ledger_of(store: Path) -> Ledger:
    return Ledger(store / "latest" / "tiny" / "ledger.jsonl")


def kill_after(store: Path, num_stages: int) -> None:
    """Start a confirmation and kill its driver when it has done so many stages."""
    before = len(finished(store))
    driver = subprocess.Popen(
        command("confirm", "tiny", "--store", store),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + DEADLINE_S
    try:
        while len(finished(store)) < before + num_stages:
            assert driver.poll() is None, "it ended before the moment came"
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait(timeout=30)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="at once"),
        pytest.param(True, id="killed once", marks=pytest.mark.slow),
    ],
)
def confirmation_of(
    request: pytest.FixtureRequest, undisturbed: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str], Ended]:
    """A confirmed store, what was done of it when it was killed, and how the last one ended."""
    store = tmp_path_factory.mktemp("confirmed") / "store"
    shutil.copytree(undisturbed[0], store, symlinks=True)
    if request.param:
        kill_after(store, 2)
    before = finished(store)
    return store, before, paretoken("confirm", "tiny", "--store", store, "--json")


Done = tuple[Path, dict[str, str], Ended]


def test_the_answer_has_every_point_on_every_seed(undisturbed: Run, confirmation_of: Done) -> None:
    _, _, ended = confirmation_of
    assert ended.code == 0, ended.err
    found, searched = ended.answer, undisturbed[1].answer
    assert (found["study"], found["study_key"]) == ("tiny", searched["study_key"])
    assert (found["split"], found["clips"], found["seeds"]) == ("test", 8, list(SEEDS))
    assert [p["trial"] for p in found["points"]] == [p["trial"] for p in searched["front"]]
    assert found["dense"]["trial"] == 0
    for point in [*found["points"], found["dense"]]:
        assert [*point["by_seed"]] == [str(seed) for seed in SEEDS]
        low, high = point["intervals"]["top1"]
        assert low <= point["values"]["top1"] <= high
        assert 0 <= point["on_front"] <= 1
        assert point["is_certain"] == (point["on_front"] >= 0.95)
        moved = 100 * (point["values"]["top1"] - point["searched"]["top1"])
        assert point["difference"] == pytest.approx(moved)
        assert point["latency_ms"]["low"] <= point["latency_ms"]["median"]
        assert point["clips_per_s"]["median"] > 0
        assert point["attention"]
    assert found["device"] == found["timing"]["device"]


def test_a_killed_confirmation_goes_on_and_repeats_nothing(confirmation_of: Done) -> None:
    store, before, ended = confirmation_of
    assert ended.code == 0, ended.err
    assert before.items() <= finished(store).items()
    records = ledger_of(store).confirmations()
    points = {p["trial"] for p in [*ended.answer["points"], ended.answer["dense"]]}
    places = [(record.trial, record.params["seed"]) for record in records]
    assert sorted(places) == sorted((trial, seed) for trial in points for seed in SEEDS)
    assert {record.state for record in records} == {"complete"}


def test_trainings_that_points_share_are_shared_again(confirmation_of: Done) -> None:
    store, _, _ = confirmation_of
    searched = {r.stage_keys[0] for r in ledger_of(store).trials().values()}
    trained = {(r.stage_keys[0], r.params["seed"]) for r in ledger_of(store).confirmations()}
    assert searched.isdisjoint(key for key, _ in trained)
    kinds = {json.dumps(r.params.get("finetune.tau")) for r in ledger_of(store).confirmations()}
    assert len(trained) == len(kinds) * len(SEEDS)


def test_a_whole_confirmation_needs_no_ray_and_says_the_same(
    confirmation_of: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    store, _, ended = confirmation_of
    before = (finished(store), len(ledger_of(store).records))
    assert main(["confirm", "tiny", "--store", str(store), "--json"]) == 0
    said = capsys.readouterr()
    again = json.loads(said.out.splitlines()[-1])
    assert "ray " not in said.err
    assert (finished(store), len(ledger_of(store).records)) == before
    for name in ("points", "dense", "timing"):
        assert again[name] == ended.answer[name]
    table = said.err[said.err.index("confirmation of tiny") : said.err.index("files  ")]
    assert max(map(len, table.splitlines())) <= 100


def test_files_table_and_figure_show_it(confirmation_of: Done) -> None:
    store, _, ended = confirmation_of
    folder = store / "latest" / "tiny"
    found = read_json(folder / "confirm.json")
    assert found["points"] == ended.answer["points"]
    with (folder / "confirm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = {point["trial"] for point in [*found["points"], found["dense"]]}
    assert {int(row["trial"]) for row in rows} == shown
    page = (folder / "front.html").read_text()
    assert page.count('<tr class="confirmed"') == len(shown)
    assert "With a bar" in page
    assert "error_y" in page
    made = summary.summarise(folder, ledger_of(store))
    front = f"{len(made['front'])} of {len(made['front'])} points confirmed"
    assert front in " ".join((folder / "front.html").read_text().split())
    unsure = sum(not point["is_certain"] for point in found["points"])
    assert verdict.table(found, made).count("   ? ") == unsure


def test_mlflow_has_a_parent_of_its_own_with_a_child_a_point(confirmation_of: Done) -> None:
    _, _, ended = confirmation_of
    tracked, found = ended.answer["tracking"], ended.answer
    client = mlflow.MlflowClient(tracked["uri"])
    parent = client.get_run(tracked["run_id"])
    assert parent.info.run_name == f"tiny confirm ({found['study_key'][:6]})"
    assert parent.info.status == "FINISHED"
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    runs = client.search_runs([parent.info.experiment_id], query)
    points = {p["trial"]: p for p in [*found["points"], found["dense"]]}
    assert sorted(int(r.data.tags["paretoken.trial"]) for r in runs) == sorted(points)
    for run in runs:
        point = points[int(run.data.tags["paretoken.trial"])]
        assert run.data.metrics["values/top1"] == pytest.approx(point["values"]["top1"])
        assert run.data.metrics["latency_ms/median"] == point["latency_ms"]["median"]
    (study_run,) = client.search_runs(
        [parent.info.experiment_id], f"tags.`paretoken.study_key` = '{found['study_key']}'"
    )
    below = f"tags.`paretoken.parent` = '{study_run.info.run_id}'"
    roles = client.search_runs([parent.info.experiment_id], below)
    assert "confirm" not in {run.data.tags["paretoken.role"] for run in roles}


def test_the_front_and_the_card_of_a_point_know_that_it_was_confirmed(
    confirmation_of: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    store, _, ended = confirmation_of
    assert main(["front", "tiny", "--store", str(store), "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["confirmed"]["points"] == ended.answer["points"]
    assert "confirm" not in {point.get("role") for point in made["points"]}
    record = ledger_of(store).trials()[made["knee"]]
    said = " ".join(confirmation(made, record, Axes.of(made)).split())
    assert "Confirmed on 2 further seeds and 8 test clips" in said
    assert "clips/s in batches of 8" in said
    other = {**made, "confirmed": None}
    assert "Not confirmed" in confirmation(other, record, Axes.of(made))


def test_a_point_that_was_searched_again_is_not_confirmed(
    confirmation_of: Done, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(confirmation_of[0], store, symlinks=True)
    folder = store / "latest" / "tiny"
    found = read_json(folder / "confirm.json")
    for entry in found["points"]:
        entry["searched_keys"] = ["of other code"]
    write_json(folder / "confirm.json", found)
    assert "confirmed" not in summary.summarise(folder, ledger_of(store))


# In this process.


@pytest.fixture
def here(confirmation_of: Done, tmp_path: Path) -> Confirmation:
    """The confirmation of a copy of the store, with a ledger as the search left it."""
    store = tmp_path / "store"
    shutil.copytree(confirmation_of[0], store, symlinks=True)
    ledger = ledger_of(store)
    lines = [line for line in ledger.path.read_text().splitlines() if '"confirm"' not in line]
    ledger.path.write_text("\n".join(lines) + "\n")
    return again(store)


def again(store: Path) -> Confirmation:
    facts = read_json(store / "latest" / "tiny" / "study.json")
    small = replace(study(), confirm_seeds=1)
    digest = digest_of(store, small.name, facts)
    return Confirmation(small, ledger_of(store), digest, Store(store))


def digest_of(store: Path, name: str, facts: dict[str, Any]) -> str:
    from orchestrator import data
    from workloads import datasets

    (folder,) = (store / "data").glob(f"{name}-*")
    manifest = datasets.load(folder, trains=True, seed=0, hashes=store / "hashes.json")
    return data.digest_of(manifest, facts["clips"]["short_side"])


def heard(*args: object) -> None:
    """Take no notice."""


def test_fewer_seeds_use_what_more_of_them_left(here: Confirmation) -> None:
    def nobody(stage: Stage, key: str) -> dict[str, Any]:
        raise AssertionError(f"{stage.kind} is in the store")

    here.run(nobody, 1, heard)
    assert {record.params["seed"] for record in here.ledger.confirmations()} == {1000}
    assert all(point.is_whole for point in here.all)


def test_a_timing_of_another_machine_is_taken_anew(
    here: Confirmation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # others may use the rest
    facts = read_json(here.store.root / "latest" / "tiny" / "study.json")
    clips = open_clips(here.store.root / facts["clips"]["cache"])
    launch = stages.in_process(clips, here.digest, here.store)
    here.run(launch, 1, heard)
    point = here.points[0]
    one, other = here.timing(point, "here"), here.timing(point, "elsewhere")
    assert one.key(here.digest) != other.key(here.digest)
    assert isinstance(one.config, timing.Config)
    assert isinstance(one.config.dense, evaluate.Config)
    here.time(point, "elsewhere", launch)
    assert point.timed is not None
    assert point.timed.metrics["timing/latency_ms"] > 0


def test_a_point_that_fails_is_told_and_the_others_are_confirmed(here: Confirmation) -> None:
    lost = here.points[0].record.trial

    def refuse(stage: Stage, key: str) -> dict[str, Any]:
        return {"state": "failed", "reason": "out of memory"}

    plan = here.plan(here.points[0].record, 1000)
    shutil.rmtree(here.store.stage(plan.key(here.digest)))
    here.run(refuse, 1, heard)
    made = summary.summarise(here.store.root / "latest" / "tiny", here.ledger)
    found = here.found(made, 8, {"wall_s": 1.0})
    states = {entry["trial"]: entry["state"] for entry in found["points"]}
    assert states.pop(lost) == "failed"
    assert {*states.values()} <= {"complete"}
    table = " ".join(verdict.table(found, made).split())
    assert "not confirmed: evaluate: out of memory" in table
    verdict.write(found, here.ledger.path.parent)
    made = summary.summarise(here.ledger.path.parent, here.ledger)
    write(made, here.ledger.path.parent)
    records = {record.trial: record.state for record in verdict.records_of(found)}
    assert records[lost] == "failed"


def test_nothing_goes_on_where_nothing_can_run(here: Confirmation) -> None:
    def closed(stage: Stage, key: str) -> dict[str, Any]:
        return {"state": "fatal", "reason": "the head is gone"}

    shutil.rmtree(here.store.stage(here.plan(here.points[0].record, 1000).key(here.digest)))
    with pytest.raises(Exception, match="the head is gone") as error:
        here.run(closed, 1, heard)
    assert not isinstance(error.value, StageFailed)


def test_other_seeds_are_run_only_where_they_change_something(here: Confirmation) -> None:
    """A model from outside, dense or with RLT, answers the same; random drop draws again."""
    train, measure = here.study.stages
    config: Any = train.config
    outside = Stage(kind="load", config=load.Config(model=config.model, clip=config.clip))
    measure = replace(measure, inputs=(("weights", outside),))
    here.seeds = SEEDS
    record = replace(here.points[0].record, trial=0)
    for reducers, seeds in (((), 1), ((rlt.Config(tau=0.1),), 1), ((drop.Config(),), 2)):
        last = replace(measure, config=replace(measure.config, reducers=reducers))
        here.study = replace(here.study, stages=(outside, last), space=Space({}))
        assert len(here.seeds_of(record)) == seeds


# What cannot be confirmed.


def test_what_cannot_be_confirmed_is_told_in_a_line(
    confirmation_of: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(confirmation_of[0], store, symlinks=True)
    assert main(["confirm", "demo", "--store", str(store)]) == 2
    assert "no study 'demo' was ever run" in capsys.readouterr().err
    (videos,) = (store / "data").glob("tiny-*")
    for clip in [*videos.glob("test/*/*")][1:]:
        clip.unlink()
    line = ["confirm", "tiny", "--store", str(store), "--data", str(videos)]
    assert main(line) == 2
    assert "are not those of its last run" in capsys.readouterr().err
    ledger = store / "latest" / "tiny" / "ledger.jsonl"
    ledger.write_text("")
    assert main(["confirm", "tiny", "--store", str(store), "--json"]) == 1
    assert "no front" in capsys.readouterr().err


def test_confirmed_answers_are_those_of_the_table(here: Confirmation) -> None:
    here.run(lambda stage, key: {}, 1, heard)
    point = here.all[0]
    answers = confirmed.answers_of(point.outcomes[1000], here.store)
    assert answers["logits"].shape == (8, 8)
    gain_N, cost_N = confirmed.values_of(answers, None, here.study.objectives)
    assert gain_N.mean() == pytest.approx(point.outcomes[1000].metrics["test/top1"])
    assert cost_N.mean() == pytest.approx(point.outcomes[1000].metrics["cost/gmacs"])
