"""The ledger: a line a record, whole or not there; the later record of a trial counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import Ledger, Record

FULL = Record(
    trial=3,
    role="trial",
    params={"reducer": "rlt", "tau": 0.1 + 0.2, "schedule": "decreasing", "on": True, "r": 4},
    values={"top1": 1 / 3, "gmacs": 1e-9},
    state="complete",
    stage_keys=["a" * 64, "b" * 64],
    metrics={"val/top1": 1 / 3},
    stages=[{"key": "a", "kind": "finetune", "seconds": 1.5, "device": "cpu", "reused": False}],
    asked={"evaluate.reducers": "rlt", "evaluate.reducers.rlt.tau": 0.3},
)
FAILED = replace(
    FULL, trial=4, state="failed", values={}, reason="Mistake: t\u00fcbelet\n  choose\u2028another"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "studies" / "key" / "ledger.jsonl"


def written(path: Path, *records: Record) -> Ledger:
    ledger = Ledger(path)
    for record in records:
        ledger.append(record)
    return ledger


def test_a_ledger_that_is_not_there_is_empty_and_not_made_by_looking(path: Path) -> None:
    assert Ledger(path).records == []
    assert not path.parent.exists()


def test_records_come_back_as_they_were(path: Path) -> None:
    ledger = written(path, FULL, FAILED)
    assert ledger.records == Ledger(path).records == [FULL, FAILED]


def test_a_record_is_one_line_of_json_without_a_header(path: Path) -> None:
    written(path, FULL, FAILED)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [3, 4]
    promised = {"trial", "role", "params", "values", "state", "stage_keys"}
    assert promised <= json.loads(lines[0]).keys()


def test_appending_leaves_earlier_lines_alone(path: Path) -> None:
    ledger = written(path, FULL)
    before = path.read_bytes()
    ledger.append(FAILED)
    assert path.read_bytes().startswith(before)
    written(path, FULL)
    assert Ledger(path).records == [FULL, FAILED, FULL]


def test_the_later_record_of_a_trial_counts(path: Path) -> None:
    again = replace(FULL, values={"top1": 0.5, "gmacs": 2.0})
    ledger = written(path, FULL, FAILED, again)
    assert ledger.trials() == Ledger(path).trials() == {3: again, 4: FAILED}


def test_controls_and_confirmations_are_no_trials(path: Path) -> None:
    control = replace(FULL, role="control", params={"control": "drop"})
    frames = replace(control, params={"control": "frames"})
    ledger = written(path, FULL, control, replace(FULL, role="confirm"), frames)
    assert ledger.trials() == {3: FULL}
    assert ledger.controls() == [control, frames]


@pytest.mark.parametrize("left", [1, 40, -2, -1])
def test_a_torn_last_line_is_passed_over_and_said_and_cut_by_the_next(
    left: int, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(path, FULL)
    whole = path.read_bytes()
    written(path, FAILED)
    torn = path.read_bytes()[len(whole) :][:left]
    path.write_bytes(whole + torn)
    ledger = Ledger(path)
    assert ledger.records == [FULL]
    assert path.read_bytes() == whole + torn, "a reader writes nothing"
    assert f"event=torn_line path={path} bytes={len(torn)}" in caplog.text
    ledger.append(FAILED)
    assert path.read_bytes().startswith(whole + b'{"')
    assert Ledger(path).records == [FULL, FAILED]


def test_a_line_that_the_disk_cut_short_is_not_continued(path: Path) -> None:
    """Unlike after a crash, the same process goes on to append."""
    ledger = written(path, FULL)
    with path.open("ab") as file:
        file.write(b'{"trial": 4')
    ledger.append(FAILED)
    assert Ledger(path).records == ledger.records == [FULL, FAILED]


def test_a_ledger_of_nothing_but_a_torn_line_is_empty(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('{"trial": 0, "ro')
    assert Ledger(path).records == []
    written(path, FULL)
    assert Ledger(path).records == [FULL]


def test_a_whole_ledger_is_not_touched(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(path, FULL)
    before = path.stat().st_mtime_ns
    Ledger(path)
    assert path.stat().st_mtime_ns == before
    assert caplog.text == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"values": {"top1": float("nan"), "gmacs": 1.0}},
        {"metrics": {"val/loss": float("inf")}},
        {"params": {"tau": -float("inf")}},
        {"params": {"kind": object()}},
    ],
)
def test_what_json_cannot_hold_is_refused_and_leaves_no_trace(
    changes: dict[str, Any], path: Path
) -> None:
    ledger = written(path, FULL)
    with pytest.raises((ValueError, TypeError), match="JSON"):
        ledger.append(replace(FULL, **changes))
    assert ledger.records == Ledger(path).records == [FULL]
