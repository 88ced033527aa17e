"""Groups of real Ray Train workers: what happens when one is killed, stopped, or fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from launched import DEADLINE_S, Launched, rank_pids, run_with_a_kill
from safetensors.torch import load_file
from stored import KEY
from tiny import study

from orchestrator import cluster, data, stages, train
from orchestrator.files import read_json
from orchestrator.pool import Pool
from orchestrator.store import Store
from search_spaces.study import Stage
from workloads import datasets, decoder, finetune, pretrain
from workloads.clips import ClipSet, open_clips
from workloads.datasets import Manifest, synthetic
from workloads.reducers import mats, rlt, tome
from workloads.stage import Report, Result

TRAIN = study().stages[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    config = study().data
    assert config is not None
    return datasets.load(synthetic.write(config, folder / "clips"), trains=True)


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def pool(folder: Path, manifest: Manifest, store: Store) -> Iterator[Pool]:
    cluster.join(None)
    many = replace(cluster.shares(1, 1), threads=1000)  # as in a cluster of many nodes
    pool = Pool(1, 1, many, folder / "ray")
    pool.start(store.root, checkpoint_s=0.05)
    frames = data.folder_for(store.root, manifest, 32)
    data.fill(frames, manifest, 32, lambda done, total: None)
    pool.serve(frames, manifest.digest)
    yield pool
    end = time.monotonic() + DEADLINE_S
    while not pool.stop():
        assert time.monotonic() < end, "a group does not go home"
    ray.shutdown()


@pytest.fixture(scope="module")
def clip_set(pool: Pool, store: Store, manifest: Manifest) -> ClipSet:
    return open_clips(data.folder_for(store.root, manifest, 32))


def training(**changes: Any) -> Stage:
    assert isinstance(TRAIN.config, finetune.Config)
    return replace(TRAIN, config=replace(TRAIN.config, **changes))


def pretraining() -> Stage:
    assert isinstance(TRAIN.config, finetune.Config)
    config = pretrain.Config(
        model=TRAIN.config.model,
        clip=TRAIN.config.clip,
        reducers=(mats.Config(keep=0.3),),
        decoder=decoder.Config(dim=8, depth=1, heads=2),
        steps=400,
        batch=8,
    )
    return Stage(kind="pretrain", config=config)


PLANS = {
    "finetune": training(steps=400, reducers=(rlt.Config(),)),
    "pretrain, then finetune": replace(training(steps=400), inputs=(("weights", pretraining()),)),
}


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(plan, id=name, marks=[pytest.mark.slow] * (name != "finetune"))
        for name, plan in PLANS.items()
    ],
)
def test_a_killed_rank_goes_on_in_its_epoch_and_ends_with_the_same_bits(
    plan: Stage, pool: Pool, store: Store, manifest: Manifest, clip_set: ClipSet, folder: Path
) -> None:
    """In each stage of a chain."""
    keys = [run_with_a_kill(pool, stage, manifest.digest) for stage in plan.chain()]
    elsewhere = Store.open(folder / "elsewhere")
    torch.set_num_threads(cluster.num_cores())
    stages.run(
        plan, manifest.digest, elsewhere, stages.in_process(clip_set, manifest.digest, elsewhere)
    )
    for key in keys:
        killed, undisturbed = (s.find(key) for s in (store, elsewhere))
        assert killed is not None
        assert undisturbed is not None
        ours, theirs = load_file(killed.weights), load_file(undisturbed.weights)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert killed.metrics == undisturbed.metrics
        assert read_json(killed.folder / "metrics.json")["threads"] == cluster.num_cores()


def test_a_stage_that_nobody_waits_for_frees_its_group_within_two_seconds(
    pool: Pool, manifest: Manifest
) -> None:
    launched = Launched(pool, training(steps=100_000), manifest.digest, owner="impatient")
    launched.wait_for(10)
    begun = time.monotonic()
    ray.get(pool.board.release.remote("impatient"))
    assert launched.ended()["state"] == "cancelled"
    assert time.monotonic() - begun < 2
    assert not pool.snapshot()["running"]


def test_a_stage_that_waits_in_the_queue_leaves_it_when_it_is_released(
    pool: Pool, manifest: Manifest
) -> None:
    first = Launched(pool, training(steps=100_001), manifest.digest, owner="first")
    first.wait_for(1)
    second = Launched(pool, training(steps=100_002), manifest.digest, owner="second")
    ray.get(pool.board.release.remote("second"))
    assert second.ended()["state"] == "cancelled"
    ray.get(pool.board.release.remote("first"))
    assert first.ended()["state"] == "cancelled"


def test_the_same_stage_posted_twice_runs_once(pool: Pool, manifest: Manifest) -> None:
    before = pool.snapshot()["stages_run"]
    pair = [Launched(pool, training(seed=7), manifest.digest, owner=name) for name in "ab"]
    assert [launched.ended()["state"] for launched in pair] == ["done", "done"]
    assert pool.snapshot()["stages_run"] == before + 1


def test_a_stage_that_fails_says_why_and_the_next_one_runs(pool: Pool, manifest: Manifest) -> None:
    illegal = training(reducers=(rlt.Config(), tome.Config()))
    outcome = Launched(pool, illegal, manifest.digest).ended()
    assert outcome["state"] == "failed"
    assert "tome at block 0 needs the same number of tokens" in outcome["reason"]
    assert Launched(pool, training(seed=8), manifest.digest).ended()["state"] == "done"


@pytest.mark.slow
def test_a_stage_that_is_killed_three_times_is_given_up(pool: Pool, manifest: Manifest) -> None:
    launched = Launched(pool, training(steps=100_003), manifest.digest)
    for attempt in (1, 2, 3):
        launched.wait_for(1, attempt)
        (pid,) = rank_pids()
        os.kill(pid, signal.SIGKILL)
    outcome = launched.ended()
    assert outcome["state"] == "failed"
    assert "killed 3 times" in outcome["reason"]
    again = Launched(pool, training(steps=100_003), manifest.digest, owner="another")
    assert again.ended() == outcome, "in this run it is not tried again"


def test_two_drivers_that_want_one_stage_do_it_once(
    pool: Pool, store: Store, manifest: Manifest
) -> None:
    stage = training(seed=9)
    lock = store.lock(stage.key(manifest.digest))
    assert lock.take()  # another driver is at it
    launched = Launched(pool, stage, manifest.digest)
    threading.Timer(1.0, lock.release).start()
    assert launched.ended()["state"] == "done"


def spoilt(clips: Path, folder: Path, num_bad: int) -> Manifest:
    """Return the manifest of the clips with some that cannot be read among them."""
    shutil.copytree(clips, folder)
    for number in range(num_bad):
        (folder / "train" / "up-slow" / f"bad{number}.mp4").write_bytes(b"no video" * number)
    return datasets.load(folder, trains=True)


def test_a_few_unreadable_videos_are_listed_and_left_out(
    pool: Pool, manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    some = spoilt(manifest.root, tmp_path / "clips", num_bad=1)
    frames = data.folder_for(tmp_path / "store", some, 32)
    bad = data.fill(frames, some, 32, lambda done, total: None).bad
    assert [(entry.name, entry.reason) for entry in bad] == [
        ("train/up-slow/bad0.mp4", "empty file")
    ]
    assert "bad0.mp4,train,empty file" in (frames / data.BAD_LIST).read_text()
    said = data.complaint(frames, bad, some)
    assert said.startswith("1 of 57 videos could not be read (1.8%, limit 2%)")
    readable = open_clips(frames)
    assert len(readable.splits["train"]) == 32


def test_too_many_unreadable_videos_stop_a_study(
    pool: Pool, manifest: Manifest, tmp_path: Path
) -> None:
    many = spoilt(manifest.root, tmp_path / "clips", num_bad=2)
    frames = data.folder_for(tmp_path / "store", many, 32)
    for _ in range(2):  # once decoded, and once found in the cache
        with pytest.raises(data.TooManyBad, match="2 of 58 videos could not be read"):
            data.fill(frames, many, 32, lambda done, total: None)


# Two ranks, without Ray: what one of them alone meets, both end with.


class Deaf:
    """A board that hears all and never answers."""

    class beat:  # noqa: N801 - as an actor's method
        @staticmethod
        def remote(*heard: object) -> None:
            return None

    hear = beat


def full(fd: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def toy_stage(num_steps: int) -> ModuleType:
    """Return a kind of stage that does nothing, in steps with checkpoints."""

    def run(config: Any, clips: Any, inputs: Any, report: Report) -> Result:
        for done in range(1, num_steps + 1):
            report.step(done, num_steps, dict, lambda done=done: {"done": done})
        return Result({"head": torch.ones(2)}, {"val/top1": 0.5}, None)

    module = ModuleType("workloads.toy")
    module.run = run  # type: ignore[attr-defined]
    return module


def rank(number: int, folder: Path, num_steps: int, fills: bool) -> None:
    """Be one of two ranks that run a toy stage; on rank 0 the disk may be full."""
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, rank=number, world_size=2)
    sys.modules["workloads.toy"] = toy_stage(num_steps)
    nothing = ClipSet((), (), (), {}, lambda clip_id: None)  # type: ignore[arg-type,return-value]
    train._clips = lambda *where: nothing  # type: ignore[assignment]
    if fills and number == 0:
        os.fsync = full  # type: ignore[assignment]
    runtime = train.Runtime(group=0, board=Deaf(), store=folder, threads=1, checkpoint_s=-1)
    stage = replace(TRAIN, kind="toy")  # type: ignore[arg-type]
    job = {"stage": stage, "key": KEY, "clips": ("frames", "digest")}
    ranks = train.Ranks()
    limit = ranks.line._get_backend(torch.device("cpu")).options._timeout
    assert limit == timedelta(seconds=train.COLLECTIVE_S)
    outcome = train.Work(runtime, ranks, torch.device("cpu"), job).run()
    (folder / f"{number}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()


def outcomes(folder: Path, num_steps: int, fills: bool) -> list[dict[str, Any]]:
    torch.multiprocessing.spawn(rank, (folder, num_steps, fills), nprocs=2)
    return [read_json(folder / f"{number}.json") for number in (0, 1)]


def test_two_ranks_publish_once(tmp_path: Path) -> None:
    assert [outcome["state"] for outcome in outcomes(tmp_path, 3, fills=False)] == ["done"] * 2
    found = Store(tmp_path).find(KEY)
    assert found is not None
    assert found.metrics == {"val/top1": 0.5}


@pytest.mark.parametrize("num_steps", [0, 3], ids=["at the end", "in a checkpoint"])
def test_a_full_disk_that_rank_0_alone_meets_is_fatal_for_both(
    num_steps: int, tmp_path: Path
) -> None:
    ended = outcomes(tmp_path, num_steps, fills=True)
    assert [outcome["state"] for outcome in ended] == ["fatal"] * 2
    assert "No space left on device" in ended[0]["reason"]
    assert Store(tmp_path).find(KEY) is None
