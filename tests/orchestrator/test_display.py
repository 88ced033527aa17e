"""What a person sees while a study runs."""

from __future__ import annotations

import pytest

from orchestrator.display import Display
from orchestrator.ledger import Record

PARAMS = {"finetune.reducer": "none", "reducer": "rlt", "tau": 0.1}
VALUES = {"top1": 0.85, "gmacs": 0.01}


def record(number: int, **changes: object) -> Record:
    whole = {"params": PARAMS, "values": VALUES, "state": "complete", "stage_keys": [], **changes}
    return Record(trial=number, role="trial", **whole)  # type: ignore[arg-type]


def shown(display: Display) -> list[str]:
    return display._render().plain.splitlines()


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    """A display on whose clock a trial ends every 20 seconds."""
    clock = iter(range(0, 2000, 20))
    monkeypatch.setattr("orchestrator.display.time.monotonic", lambda: float(next(clock)))
    return Display()


def test_it_tells_how_many_trials_are_done_the_best_so_far_and_the_time_left(
    display: Display,
) -> None:
    for done in range(1, 5):
        display.searching(record(done), done, 24, 0, "hypervolume 0.710")
    (search, _) = shown(display)
    assert search == "search  4/24 trials   0 failed   hypervolume 0.710   6 m 40 s left"


def test_nothing_is_foretold_from_one_trial(display: Display) -> None:
    display.searching(record(0), 1, 24, 0, "hypervolume 0.000")
    assert "left" not in shown(display)[0]


def test_a_running_stage_has_a_bar_its_loss_and_its_time_left(display: Display) -> None:
    running = {"kind": "finetune", "progress": (300, 600), "metrics": {"train/loss": 0.5}}
    display._last = {"running": [{**running, "seconds": 30.0}]}
    line = shown(display)[0]
    assert line.startswith("finetune  ##########----------   300/600   loss 0.50   30 s left")


def test_without_a_terminal_each_trial_is_a_line(
    display: Display, capsys: pytest.CaptureFixture[str]
) -> None:
    display.searching(record(3), 4, 24, 0, "hypervolume 0.710")
    failed = record(4, values={}, state="failed", reason="finetune: out of memory\nmore")
    display.searching(failed, 5, 24, 1, "hypervolume 0.710")
    first, second = capsys.readouterr().err.splitlines()
    assert first.split()[:4] == ["trial", "3", "(4/24)", "rlt"]
    assert "top1 0.85  gmacs 0.01   hypervolume 0.710" in first
    assert "failed: finetune: out of memory" in second
