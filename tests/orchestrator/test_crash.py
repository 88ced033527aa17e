"""Kill -9 at any moment: a second run goes on, repeats no finished stage, loses no trial."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TINY, Ended, command, environment, hear_interrupts, paretoken
from test_run import Run, journal_of, ledger_of, mirrored

DEADLINE_S = 120


def finished_stages(store: Path) -> dict[str, str]:
    """Return which attempt counts, for each finished stage."""
    marks = store.glob("stages/*/*/DONE")
    return {mark.parent.name: json.loads(mark.read_text())["attempt"] for mark in marks}


def ledger_lines(store: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in store.glob("studies/*/ledger.jsonl"))


def asked(store: Path) -> int:
    return sum(
        path.read_text().count('"op_code":4') for path in store.glob("studies/*/journal.log")
    )


def is_training(store: Path) -> bool:
    return any(store.glob("stages/*/*/lock")) and not finished_stages(store)


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while the first stage runs": is_training,
    "when a trial was asked and nothing came of it yet": lambda store: asked(store) == 2,
    "right after a line of the ledger": lambda store: ledger_lines(store) == 3,
    "between two controls": lambda store: ledger_lines(store) == 7,
}


def end_when(store: Path, moment: Callable[[Path], bool], number: signal.Signals) -> Ended:
    """Start a run and send its driver a signal at a moment; of Ctrl-C all its processes hear."""
    driver = subprocess.Popen(
        command("run", TINY, "--store", store),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    end = time.monotonic() + DEADLINE_S
    while not moment(store):
        assert driver.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < end
        time.sleep(0.01)
    send = os.killpg if number == signal.SIGINT else os.kill
    send(driver.pid, number)
    driver.wait(timeout=30)
    assert driver.stdout is not None
    assert driver.stderr is not None
    return Ended(driver.returncode, driver.stdout.read(), driver.stderr.read())


@pytest.fixture(
    scope="module",
    params=[
        pytest.param([*MOMENTS][::2], id="killed twice"),
        pytest.param([*MOMENTS], id="killed four times", marks=pytest.mark.slow),
    ],
)
def disturbed(
    request: pytest.FixtureRequest, undisturbed: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Ended, dict[str, str]]:
    """A store whose driver was killed at some moments, the run after that, and what was done."""
    store = tmp_path_factory.mktemp("disturbed") / "store"
    shutil.copytree(undisturbed[0] / "data", store / "data")  # the same clips, drawn once
    before: dict[str, str] = {}
    for name in request.param:
        end_when(store, MOMENTS[name], signal.SIGKILL)
        now = finished_stages(store)
        assert before.items() <= now.items(), "a finished stage was run again"
        before = now
    return store, paretoken("run", TINY, "--store", store, "--json"), before


def test_a_killed_driver_ends_with_the_front_of_an_undisturbed_one(
    undisturbed: Run, disturbed: tuple[Path, Ended, dict[str, str]]
) -> None:
    _, ended, _ = disturbed
    assert ended.code == 0, ended.err
    assert ended.answer["points"] == undisturbed[1].answer["points"]
    assert ended.answer["front"] == undisturbed[1].answer["front"]
    assert ended.answer["controls"] == undisturbed[1].answer["controls"]


def test_no_finished_stage_is_run_again(disturbed: tuple[Path, Ended, dict[str, str]]) -> None:
    store, _, before = disturbed
    assert before.items() <= finished_stages(store).items()


def test_ledger_journal_and_mlflow_agree_after_kills(
    disturbed: tuple[Path, Ended, dict[str, str]],
) -> None:
    store, ended, _ = disturbed
    trials = [line for line in ledger_of(store) if line["role"] == "trial"]
    assert sorted(line["trial"] for line in trials) == list(range(6))
    values = {line["trial"]: list(line["values"].values()) for line in trials}
    assert {trial.number: sorted(trial.values) for trial in journal_of(store)} == {
        number: sorted(pair) for number, pair in values.items()
    }
    assert sorted(mirrored(ended.answer)) == list(range(6))


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "group up"),
        pytest.param(signal.SIGTERM, "training", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_says_how_to_go_on(
    number: signal.Signals, moment: str, undisturbed: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0] / "data", store / "data")
    ray_is_up = (store / "ray" / "group-0").exists
    ended = end_when(store, is_training if moment == "training" else lambda _: ray_is_up(), number)
    assert ended.code == 130, ended.err
    assert f"Continue with: paretoken run {TINY} --store {store}" in ended.err


def test_a_torn_last_line_is_mended(undisturbed: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store, symlinks=True)
    for name in ("ledger.jsonl", "journal.log"):
        (path,) = store.glob(f"studies/*/{name}")
        with path.open("a") as file:
            file.write('{"trial": 6, "ro')
    again = paretoken("run", TINY, "--store", store, "--json")
    assert again.code == 0, again.err
    assert again.answer["front"] == undisturbed[1].answer["front"]


def test_a_lost_journal_is_made_again_from_the_ledger(undisturbed: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store, symlinks=True)
    (path,) = store.glob("studies/*/journal.log")
    before = [(trial.params, trial.values) for trial in journal_of(store)]
    path.unlink()
    again = paretoken("run", TINY, "--store", store, "--json")
    assert again.code == 0, again.err
    assert [(trial.params, trial.values) for trial in journal_of(store)] == before


def test_another_driver_on_the_same_study_is_refused_and_named(
    undisturbed: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed[0], store, symlinks=True)
    (lock,) = store.glob("studies/*/driver.lock")
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write("process 7 on elsewhere")
        file.flush()
        refused = paretoken("run", TINY, "--store", store)
    assert refused.code == 2
    assert "process 7 on elsewhere" in refused.err
