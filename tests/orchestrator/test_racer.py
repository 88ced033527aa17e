"""A race without Tune: what is evaluated, who stops, and that neither kills nor workers matter."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from optuna.trial import TrialState
from toys import DIGEST

from orchestrator import stages
from orchestrator.ledger import Ledger, Record
from orchestrator.memory import DENSE, Memory
from orchestrator.racer import Racer
from orchestrator.store import Store
from orchestrator.tables import Tables
from search_spaces.objectives import AGREEMENT, GMACS, TOP1
from search_spaces.space import Space, either, narrow
from search_spaces.study import Stage, Study
from workloads import clips, cost, evaluate, load
from workloads.knobs import Float
from workloads.models import videomae
from workloads.reducers import drop, mats
from workloads.stage import Result

NUM, CLASSES = 128, 4
NAMES = [f"clip{i:03}" for i in range(NUM)]
CLIP = clips.Config(frames=4, size=16)
MODEL = videomae.Config(dim=8, depth=1, heads=1, patch=8, frames=4, size=16)
FACTS = {"seconds": 1.0, "device": "cpu"}


def study(**changes: Any) -> Study:
    model = Stage(kind="load", config=load.Config(model=MODEL, clip=CLIP))
    measure = Stage(
        kind="evaluate", config=evaluate.Config(clip=CLIP), inputs=(("weights", model),)
    )
    space = Space(
        {
            "evaluate.reducers": either(
                mats=narrow(mats.Config, keep=Float(0.1, 0.9)),
                drop=narrow(drop.Config, keep=Float(0.1, 0.9)),
            )
        }
    )
    made = Study(
        name="race",
        question="",
        stages=(model, measure),
        space=space,
        sampler="even",
        trials=24,
        rungs=(1 / 8, 1 / 4, 1 / 2),
    )
    return replace(made, **changes)


@cache
def hardness() -> np.ndarray:
    return np.random.default_rng(0).random(NUM)


def right(config: evaluate.Config, ids: tuple[int, ...]) -> np.ndarray:
    """Return which clips are answered rightly: those that are easy enough for what is kept."""
    if not config.reducers:
        return hardness()[[*ids]] < 0.9
    (one,) = config.reducers
    assert isinstance(one, mats.Config | drop.Config)
    luck = np.random.default_rng(int(one.keep * 1e6)).random(NUM)[[*ids]]
    skill = 0.9 if isinstance(one, mats.Config) and one.keep > 0.3 else one.keep * 0.7
    return hardness()[[*ids]] + 0.1 * luck < skill


class World:
    """Runs stages in no time, and counts them."""

    def __init__(self, store: Store, broken: Callable[[Any], bool] = lambda config: False) -> None:
        self.store, self.broken = store, broken
        self.ran: Counter[str] = Counter()

    def launch(self, stage: Stage, key: str) -> dict[str, Any]:
        if self.broken(stage.config):
            return {"state": "failed", "reason": "out of memory"}
        self.ran[key] += 1
        result = Result({"w": torch.zeros(1)}, {}, None)
        if isinstance(stage.config, evaluate.Config):
            table = self.table(stage.config)
            result = Result(None, {"val/top1": 0.0}, table)
        self.store.attempt(key).publish(result, {}, {**FACTS, "kind": stage.kind})
        return {"state": "done"}

    def table(self, config: evaluate.Config) -> pa.Table:
        ids = evaluate.stretch(range(NUM), NAMES, config.share)
        label_B = np.array(ids) % CLASSES
        answer_B = np.where(right(config, ids), label_B, (label_B + 1) % CLASSES)
        keep = config.reducers[0].keep if config.reducers else 1.0  # type: ignore[attr-defined]
        macs_BP = np.full((len(ids), len(cost.PARTS)), 1e9 * keep / len(cost.PARTS))
        return pa.table(
            {
                "clip": [NAMES[i] for i in ids],
                "label": label_B,
                "logits": list(5 * np.eye(CLASSES, dtype=np.float32)[answer_B]),
                "tokens": np.full(len(ids), 10.0),
                "macs": list(macs_BP),
            }
        )


def racer(folder: Path, workers: int = 1, **changes: Any) -> Racer:
    """Return the racer of a driver that starts on what an earlier one left in a folder."""
    made = study(**changes)
    memory, ledger = Memory(made, folder / "journal"), Ledger(folder / "ledger")
    store = Store.open(folder / "store")
    return Racer(memory, ledger, DIGEST, made.trials, workers, lambda r: None, Tables(store), NUM)


def drive(one: Racer, world: World, most: int = 10**6, draw: Random | None = None) -> int:
    """Do what Tune does, at most so often; return how often. Of several at once any may be next."""
    running: dict[str, dict[str, Any]] = {}
    done = 0
    while True:
        given = one.suggest(str(done + len(running)))
        if isinstance(given, dict):
            running[str(done + len(running))] = given
            continue
        if not running or done == most:
            assert done == most or given == Racer.FINISHED
            return done
        name = (draw or Random(0)).choice([*running])
        config = running.pop(name)
        one.on_trial_complete(name, outcome(one, config["plan"], world))
        done += 1


def outcome(one: Racer, plan: Stage, world: World) -> dict[str, Any]:
    try:
        made = stages.run(plan, one.digest, world.store, world.launch)
    except stages.StageFailed as error:
        return {"state": error.state, "reason": str(error)}
    return {"state": "done", "outcome": json.dumps(asdict(made))}


def told(record: Record) -> dict[str, Any]:
    """Return a record without who ran its stages."""
    return {name: value for name, value in asdict(record).items() if name != "stages"}


def trials_of(folder: Path) -> dict[int, dict[str, Any]]:
    return {n: told(record) for n, record in sorted(Ledger(folder / "ledger").trials().items())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Racer, World, int]:
    """A race that nobody disturbed: its folder, its racer, its world, its number of steps."""
    folder = tmp_path_factory.mktemp("whole")
    one = racer(folder)
    world = World(one._tables.store)
    return folder, one, world, drive(one, world)


Whole = tuple[Path, Racer, World, int]


def test_some_stop_and_the_front_stays(whole: Whole) -> None:
    """Against the truth, which the world knows without being asked."""
    folder, one, _, _ = whole
    records = Ledger(folder / "ledger").trials()
    states = Counter(record.state for record in records.values())
    assert states["pruned"] > 8
    assert states["failed"] == 0
    every = tuple(range(NUM))
    configs = {n: one._plans(n)[0].config for n in records}
    truth = {n: float(right(config, every).mean()) for n, config in configs.items()}
    for number in records:
        cheaper = [
            truth[other]
            for other, record in records.items()
            if record.state == "complete"
            and record.values["gmacs"] <= records[number].metrics["cost/gmacs"] + 1e-9
        ]
        assert max(cheaper, default=0) >= truth[number] - 0.03


def test_nothing_is_evaluated_twice(whole: Whole) -> None:
    assert {*whole[2].ran.values()} == {1}


def test_records_say_what_was_seen(whole: Whole) -> None:
    folder, one, _, _ = whole
    for number, record in Ledger(folder / "ledger").trials().items():
        share = record.metrics["val/clips"] / NUM
        evaluated = [took for took in record.stages if took["kind"] == "evaluate"]
        plans = one._plans(number)[: len(evaluated)]
        assert plans[-1].config.share[1] == share  # type: ignore[union-attr]
        assert (record.state == "complete") == (share == 1)
        assert record.stage_keys == [took["key"] for took in record.stages]
        seen = evaluate.stretch(range(NUM), NAMES, (0.0, share))
        expected = right(plans[0].config, seen).mean()  # type: ignore[arg-type]
        assert record.values["top1"] == pytest.approx(expected)
        if record.state == "pruned":
            assert record.reason.startswith(f"stopped after {len(seen)} of {NUM} clips: trial ")


def test_agreement_is_with_the_dense_model_on_the_same_clips(whole: Whole) -> None:
    folder, one, _, _ = whole
    records = Ledger(folder / "ledger").trials()
    assert records[DENSE].metrics["val/agreement"] == 1
    assert records[DENSE].metrics["val/kl"] == 0
    dense = one._plans(DENSE)[0].config
    for number, record in records.items():
        seen = evaluate.stretch(range(NUM), NAMES, (0.0, record.metrics["val/clips"] / NUM))
        ours, theirs = (right(c, seen) for c in (one._plans(number)[0].config, dense))  # type: ignore[arg-type]
        assert record.metrics["val/agreement"] == pytest.approx((ours == theirs).mean())


def test_the_journal_knows_who_was_stopped(whole: Whole) -> None:
    folder, one, _, _ = whole
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    records = Ledger(folder / "ledger").trials()
    assert {t.number: t.state for t in one.memory.journal.trials} == {
        number: states[record.state] for number, record in records.items()
    }
    assert racer(folder).left == 0


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_and_who_is_first_do_not_matter(workers: int, whole: Whole, tmp_path: Path) -> None:
    one = racer(tmp_path, workers)
    drive(one, World(one._tables.store), draw=Random(workers))
    assert trials_of(tmp_path) == trials_of(whole[0])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_race_that_was_killed_comes_to_the_same(
    workers: int, whole: Whole, tmp_path: Path
) -> None:
    """After each few steps, with all that was running lost."""
    ran: Counter[str] = Counter()
    while (one := racer(tmp_path, workers)).left:
        world = World(one._tables.store)
        drive(one, world, most=11, draw=Random(len(ran)))
        ran += world.ran
    assert trials_of(tmp_path) == trials_of(whole[0])
    assert {*ran.values()} == {1}


def test_a_race_that_was_killed_while_it_wrote_down_who_stops_comes_to_the_same(
    whole: Whole, tmp_path: Path
) -> None:
    lines = (whole[0] / "ledger").read_text().splitlines(keepends=True)
    for kept in range(0, len(lines), 8):
        folder = tmp_path / str(kept)
        shutil.copytree(whole[0], folder)
        (folder / "ledger").write_text("".join(lines[:kept]))
        one = racer(folder)
        world = World(one._tables.store)
        assert drive(one, world) == 0, "all of it lies in the store"
        assert trials_of(folder) == trials_of(whole[0])


def test_more_trials_join_the_race(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "more")
    before = trials_of(whole[0])
    one = racer(tmp_path / "more", trials=36)
    assert one.left == 12
    world = World(one._tables.store)
    assert drive(one, world) > 0
    after = trials_of(tmp_path / "more")
    assert len(after) == 36
    assert {number: after[number] for number in before} == before
    assert "pruned" in {after[number]["state"] for number in range(24, 36)}


def test_what_fails_leaves_the_race_to_the_others(tmp_path: Path) -> None:
    reached: list[Any] = []

    def breaks(config: Any) -> bool:
        """Fail the second stretch of one configuration."""
        wanted = isinstance(config, evaluate.Config) and config.reducers and config.share[0] > 0
        reached.extend([config] if wanted else [])
        return bool(wanted) and len(reached) == 1

    one = racer(tmp_path)
    drive(one, World(one._tables.store, breaks))
    records = Ledger(tmp_path / "ledger").trials()
    (failed,) = (record for record in records.values() if record.state == "failed")
    assert "out of memory" in failed.reason
    assert len(records) == 24
    assert racer(tmp_path).again == [failed.trial], "the next run tries it again"


def test_without_the_dense_model_nobody_stops(tmp_path: Path) -> None:
    one = racer(tmp_path, trials=6)
    drive(
        one, World(one._tables.store, lambda c: isinstance(c, evaluate.Config) and not c.reducers)
    )
    records = Ledger(tmp_path / "ledger").trials()
    assert [records[n].state for n in range(6)] == ["failed"] + ["complete"] * 5


def test_what_halts_a_race_halts_it(tmp_path: Path) -> None:
    one = racer(tmp_path)
    one.suggest("a")
    one.on_trial_complete("a", {"state": "fatal", "reason": "the disk is full"})
    assert one.halted == "the disk is full"
    assert one.suggest("b") == Racer.FINISHED
    assert racer(tmp_path).left == 24


def test_agreement_may_be_what_the_race_is_about(tmp_path: Path) -> None:
    one = racer(tmp_path, objectives=(AGREEMENT, GMACS))
    drive(one, World(one._tables.store))
    records = Ledger(tmp_path / "ledger").trials()
    assert records[DENSE].values == {"agreement": 1.0, "gmacs": pytest.approx(1.0)}
    assert Counter(record.state for record in records.values())["pruned"] > 4


def test_stretches_of_too_few_clips_are_none(tmp_path: Path) -> None:
    made = study()
    memory, ledger = Memory(made, tmp_path / "journal"), Ledger(tmp_path / "ledger")
    tables = Tables(Store.open(tmp_path / "store"))
    for clips_, expected in ((15, [(0, 1)]), (64, [*pairwise((0, 1 / 8, 1 / 4, 1 / 2, 1))])):
        one = Racer(memory, ledger, DIGEST, 4, 1, lambda r: None, tables, clips_)
        assert one.stretches == expected
    assert TOP1 in made.objectives
