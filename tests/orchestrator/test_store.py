"""The store: opened with care; who publishes first wins, and later ones are waste."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from stored import FACTS, KEY, published, result
from tiny import study

from orchestrator import stages
from orchestrator.store import VERSION, Attempt, Store
from workloads.mistakes import Mistake
from workloads.stage import Result


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


# Opening.


def test_a_store_is_made_where_there_is_none_and_opened_where_there_is_one(tmp_path: Path) -> None:
    root = tmp_path / "some" / "where"
    assert Store.open(root).root == root
    assert [path.name for path in root.iterdir()] == ["store.json"]
    assert json.loads((root / "store.json").read_text()) == {"version": VERSION}
    published(Store.open(root))
    assert Store.open(root).find(KEY) is not None


def test_a_store_knows_its_place_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store.open(Path("here")).root == tmp_path / "here"


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"version": VERSION + 1}))
    with pytest.raises(Mistake, match=rf"is of version {VERSION + 1}, .* reads up to {VERSION}\n"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", '{"version": null}', '{"version": "new"}', "\x00\x00"]
)
def test_a_damaged_store_is_refused_by_the_name_of_its_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(Mistake, match=r"store\.json is damaged"):
        Store.open(tmp_path)
    assert (tmp_path / "store.json").read_text() == text


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/store", "/dev/null"])
def test_a_place_that_cannot_hold_a_store_is_refused(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match="choose a folder you can write to") as refused:
        Store.open(tmp_path / where)
    assert refused.value.what.startswith(f"--store {tmp_path / where}: ")


def test_a_store_is_opened_by_several_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(max_workers=8) as threads:
        opened = list(threads.map(lambda _: Store.open(tmp_path / "store"), range(200)))
    assert {store.root for store in opened} == {tmp_path / "store"}
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["store.json"]


# Publishing and finding.


def test_nothing_is_found_before_it_is_published(store: Store) -> None:
    assert store.find(KEY) is None
    attempt = store.attempt(KEY)
    attempt.save({"done": 1})
    assert store.find(KEY) is None


def test_what_was_published_is_found_as_it_was(store: Store) -> None:
    found = published(store, 0.25)
    assert (found.key, found.metrics) == (KEY, {"val/top1": 0.25})
    assert (found.seconds, found.device) == (2.5, "cpu")
    weights, expected = load_file(found.weights), result(0.25).weights
    assert expected is not None
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert pq.read_table(found.folder / "clips.parquet") == result().clips
    assert json.loads((found.folder / "config.json").read_text()) == {"steps": 4}
    assert store.find("cd" + KEY[2:]) is None


def test_a_stage_without_weights_or_clips_is_found_too(store: Store) -> None:
    store.attempt(KEY).publish(Result(None, {}, None), {}, FACTS)
    found = store.find(KEY)
    assert found is not None
    assert not found.weights.exists()


def test_the_first_attempt_counts_and_nothing_is_left_of_the_others(store: Store) -> None:
    first, second, third = (store.attempt(KEY) for _ in range(3))
    for attempt in (first, second, third):
        attempt.save({"done": 3})
    second.publish(result(0.1), {}, FACTS)
    first.publish(result(0.2), {}, FACTS)
    found = store.find(KEY)
    assert found is not None
    assert (found.metrics, found.folder) == ({"val/top1": 0.1}, second.folder)
    assert {path.name for path in store.stage(KEY).iterdir()} == {"DONE", second.name}
    assert not (second.folder / "checkpoint").exists()


class Slow(dict[str, torch.Tensor]):
    """Weights during whose writing another attempt is published."""

    rival: Attempt | None = None
    error: OSError | None = None

    def items(self) -> Any:  # Any: as in dict
        if self.rival is not None:
            rival, self.rival = self.rival, None
            rival.publish(result(0.1), {}, FACTS)
        if self.error is not None:
            raise self.error
        return super().items()


@pytest.mark.parametrize("error", [None, FileNotFoundError("swept"), OSError(errno.ENOSPC, "full")])
def test_an_attempt_that_is_overtaken_while_it_publishes_is_waste_and_no_failure(
    error: OSError | None, store: Store
) -> None:
    """As on file systems without locks, where two may work on one stage."""
    slow = Slow({"head": torch.ones(1)})
    slow.rival, slow.error = store.attempt(KEY), error
    winner = slow.rival.name
    store.attempt(KEY).publish(Result(slow, {"val/top1": 0.2}, None), {}, FACTS)
    found = store.find(KEY)
    assert found is not None
    assert found.metrics == {"val/top1": 0.1}
    assert {path.name for path in store.stage(KEY).iterdir()} == {"DONE", winner}


def test_an_attempt_that_cannot_be_written_is_a_failure(store: Store) -> None:
    slow = Slow({"head": torch.ones(1)})
    slow.error = OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="full"):
        store.attempt(KEY).publish(Result(slow, {}, None), {}, FACTS)
    assert store.find(KEY) is None


def test_a_checkpoint_that_cannot_be_written_is_a_failure_unless_a_rival_is_done(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = store.attempt(KEY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="full"):
            slow.save({"done": 1})
    published(store)
    monkeypatch.setattr(os, "fsync", full)
    slow.save({"done": 1})


def full(fd: int) -> None:
    raise OSError(errno.ENOSPC, "full")


# Between machines.


def test_a_stage_that_is_seen_late_is_waited_for(store: Store) -> None:
    timer = threading.Timer(0.3, published, (store,))
    timer.start()
    assert store.expect(KEY) is not None
    timer.join()


def test_a_store_that_the_workers_do_not_share_ends_a_study_and_says_why(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.PATIENCE_S", 0.2)
    with pytest.raises(stages.StageFailed, match="a file system that all nodes share") as ended:
        stages.run(study().stages[0], "digest", store, lambda stage, key: {"state": "done"})
    assert ended.value.state == "fatal"
    assert str(store.root) in str(ended.value)
