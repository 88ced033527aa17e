"""Files of the store that a crash or a disk spoilt: not found, said, and made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stored import KEY, flip, published, truncate

from orchestrator.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize(
    "name", ["weights.safetensors", "clips.parquet", "metrics.json", "config.json"]
)
def test_a_stage_with_a_damaged_file_is_set_aside_and_can_be_done_again(
    name: str, harm: Callable[[Path], None], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    harm(published(store).folder / name)
    assert store.find(KEY) is None
    assert "event=damaged_stage" in caplog.text
    assert name in caplog.text
    assert len(list((store.root / "damaged").glob(f"{KEY}-*/DONE"))) == 1
    assert published(store, 0.75).metrics == {"val/top1": 0.75}


def test_a_stage_whose_attempt_is_gone_is_set_aside(store: Store) -> None:
    shutil.rmtree(published(store).folder)
    assert store.find(KEY) is None
    assert published(store).metrics == {"val/top1": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        '{"attempt": "attempt-of-nobody", "hashes": {}}',
        "null",
        "[]",
        '{"attempt": "a", "hashes": []}',
        '{"attempt": "", "hashes": {"": "0"}}',
        '{"attempt": "DONE", "hashes": {"metrics.json": "0"}}',
    ],
)
def test_a_stage_with_a_damaged_mark_is_set_aside(text: str, store: Store) -> None:
    published(store)
    (store.stage(KEY) / "DONE").write_text(text)
    assert store.find(KEY) is None
    assert published(store).metrics == {"val/top1": 0.5}


def test_a_stage_whose_facts_are_none_is_set_aside(store: Store) -> None:
    folder = published(store).folder
    (folder / "metrics.json").write_text("[1]")
    mark = {"attempt": folder.name, "hashes": {}}
    (store.stage(KEY) / "DONE").write_text(json.dumps(mark))
    assert store.find(KEY) is None
    assert published(store).metrics == {"val/top1": 0.5}


def test_two_processes_may_find_the_same_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is at it while this one reads: what it renames is gone already."""
    (published(store).folder / "clips.parquet").unlink()
    rename = Path.rename

    def late(path: Path, target: Path) -> None:
        rename(path, target)
        rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert store.find(KEY) is None
    monkeypatch.undo()
    assert published(store).metrics == {"val/top1": 0.5}


def test_a_stage_that_was_never_begun_has_no_checkpoint(store: Store) -> None:
    assert store.attempt(KEY).newest() is None


def test_a_checkpoint_comes_back_bit_for_bit(store: Store) -> None:
    weight = torch.randn(3, generator=torch.Generator().manual_seed(0))
    store.attempt(KEY).save({"done": 7, "model": {"w": weight}, "loss": 0.1})
    found = store.attempt(KEY).newest()
    assert found is not None
    assert torch.equal(found["model"].pop("w"), weight)
    assert found == {"done": 7, "model": {}, "loss": 0.1}


def test_the_checkpoint_that_is_furthest_on_counts_whoever_wrote_it_and_when(store: Store) -> None:
    for done in (20, 30, 10):
        store.attempt(KEY).save({"done": done})
    last = store.attempt(KEY)
    last.save({"done": 5})
    last.save({"done": 6})
    assert last.newest() == {"done": 30}
    assert len(list(store.stage(KEY).glob("attempt-*/*"))) == 4, "one for each attempt"


@pytest.mark.parametrize("harm", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_torn_checkpoint_is_passed_over(
    harm: Callable[[Path], None], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = store.attempt(KEY), store.attempt(KEY)
    older.save({"done": 1})
    newer.save({"done": 2})
    harm(newer.folder / "checkpoint")
    assert store.attempt(KEY).newest() == {"done": 1}
    assert "event=torn_checkpoint" in caplog.text
