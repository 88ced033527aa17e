"""Clips for the stages: decoded once into the cache, or ahead of who asks for them; equal bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from conftest import ROOT, environment
from launched import run_with_a_kill
from tiny import study

from orchestrator import cluster, data, stages
from orchestrator.pool import Pool
from orchestrator.room import Room
from orchestrator.store import Store
from orchestrator.stream import Stream
from search_spaces.study import Stage
from workloads import cache, clips, datasets, finetune
from workloads.clips import ClipSet, Meter, Order, Request, open_clips
from workloads.datasets import Manifest, synthetic
from workloads.footage import Frames
from workloads.mistakes import Mistake
from workloads.reducers import drop

SIDE, GIB = 32, 2**30
CLIP = clips.Config(frames=4, stride=2.0, size=24)
TRAIN, MEASURE = study().stages


def silent(done: int, total: int) -> None:
    return None


@pytest.fixture(scope="module", autouse=True)
def cpus() -> Iterator[None]:
    cluster.join(None)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    config = study().data
    assert config is not None
    return datasets.load(
        synthetic.write(config, tmp_path_factory.mktemp("clips") / "clips"), trains=True
    )


@pytest.fixture(scope="module")
def view(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = data.folder_for(tmp_path_factory.mktemp("store"), manifest, SIDE)
    filled = data.fill(folder, manifest, SIDE, silent)
    assert (filled.decoded, filled.stored) == (len(manifest.clips),) * 2
    return folder


def fill(root: Path, manifest: Manifest, limit: int = GIB) -> data.Filled:
    folder = data.folder_for(root, manifest, SIDE)
    return data.fill(folder, manifest, SIDE, silent, Room(root / "cache", limit))


def copied(view: Path, tmp_path: Path) -> Path:
    """Return the view of a copy of the store."""
    shutil.copytree(view.parents[2], tmp_path / "store")
    return tmp_path / "store" / view.relative_to(view.parents[2])


def lose(view: Path, clip_ids: range) -> None:
    """Remove the frames of some clips."""
    for entry in cache.index(view)[clip_ids.start : clip_ids.stop]:
        cache.place(view.parents[1] / "frames", entry.key).unlink()


def streamed(view: Path, cached: bool = False, ahead: int = 4) -> ClipSet:
    clip_set = open_clips(view, cached=cached)
    assert isinstance(clip_set.frames_of, Frames)
    return replace(clip_set, feed=Stream(clip_set.frames_of, ahead, clip_set.meter))


# Into the cache.


def test_a_second_study_on_the_same_videos_decodes_nothing(
    view: Path, manifest: Manifest, tmp_path: Path
) -> None:
    root = copied(view, tmp_path).parents[2]
    again = fill(root, manifest)
    assert (again.decoded, again.stored) == (0, len(manifest.clips))
    some = replace(manifest, clips=manifest.clips[:20], contents=manifest.contents[:20], digest="1")
    others = fill(root, some)
    assert (others.decoded, others.stored) == (0, 20)


def test_a_proof_holds_for_the_content_that_it_was_made_on(
    view: Path, manifest: Manifest, tmp_path: Path
) -> None:
    mine = copied(view, tmp_path)
    digests = [manifest.contents[0].sha256, "of another file", ""]
    proved = [
        replace(clip, proved=digest) for clip, digest in zip(manifest.clips, digests, strict=False)
    ]
    clips_ = (*proved, *manifest.clips[3:])
    assert fill(mine.parents[2], replace(manifest, clips=clips_)).decoded == 0
    assert [entry.clip for entry in cache.index(mine) if entry.seeks] == [0]


def test_a_video_that_cannot_be_read_now_stops_the_study_and_is_tried_again(
    manifest: Manifest, tmp_path: Path
) -> None:
    """Or one passing fault would change what all later results are about."""
    videos = shutil.copytree(manifest.root, tmp_path / "clips")
    mine = datasets.load(videos, trains=True)
    path = videos / mine.clips[4].path
    path.rename(tmp_path / "away.mp4")
    with pytest.raises(data.NotNow, match=r"1 videos cannot be read now \(.*: no such file\)"):
        fill(tmp_path, mine)
    (tmp_path / "away.mp4").rename(path)
    assert fill(tmp_path, mine).decoded == 1
    # What was known stays known to whoever opens the view in the meantime.
    view = data.folder_for(tmp_path, mine, SIDE)
    before = cache.index(view)
    lose(view, range(4, 5))
    path.rename(tmp_path / "away.mp4")
    with pytest.raises(data.NotNow):
        fill(tmp_path, mine)
    assert cache.index(view) == before


def test_what_is_gone_or_torn_is_decoded_again_and_no_more(
    view: Path, manifest: Manifest, tmp_path: Path
) -> None:
    mine = copied(view, tmp_path)
    lose(mine, range(3, 7))
    torn = cache.place(mine.parents[1] / "frames", cache.index(mine)[9].key)
    torn.write_bytes(torn.read_bytes()[:1000])
    again = fill(mine.parents[2], manifest)
    assert (again.decoded, again.stored) == (5, len(manifest.clips))
    for clip_id in range(len(manifest.clips)):
        ours, theirs = (open_clips(one).frames_of(clip_id) for one in (mine, view))
        assert isinstance(ours, np.ndarray)
        assert np.array_equal(ours, theirs)


def test_what_has_no_room_is_counted_and_not_decoded_in_vain(
    manifest: Manifest, tmp_path: Path
) -> None:
    total = len(manifest.clips)
    counted = fill(tmp_path, manifest, limit=0)
    assert (counted.decoded, counted.stored) == (total, 0)
    assert fill(tmp_path, manifest, limit=0).decoded == 0
    each = cache.index(data.folder_for(tmp_path, manifest, SIDE))[0].num_bytes + 128
    half = fill(tmp_path, manifest, limit=each * 20)
    assert half.stored == 20
    assert half.decoded <= 21
    assert fill(tmp_path, manifest, limit=each * 20) == half._replace(decoded=0)


# Out of the videos, ahead of who asks.


def requests(clip_set: ClipSet, steps: range) -> list[Request]:
    order = Order(clip_set.ids("train"), batch=12, seed=3)
    found = []
    for step in steps:
        ids = tuple(clip_id for _, clip_id in order.at(step))
        starts = tuple(np.random.default_rng([step, i]).random() for i in ids)
        found.append(Request(ids, replace(CLIP, size=16 + 8 * (step % 2)), starts))
    return found


@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "half of it stored"])
def test_streamed_batches_are_those_of_the_cache(view: Path, cached: bool, tmp_path: Path) -> None:
    mine = copied(view, tmp_path)
    lose(mine, range(0, 28))
    clip_set, whole = streamed(mine, cached), open_clips(view)
    wanted = requests(whole, range(5, 12))  # as after a restart
    clip_set.expect(wanted)
    for request in wanted:
        assert np.array_equal(clip_set.prepare(*request), whole.prepare(*request))
    ids = [clip_id for request in wanted for clip_id in request.ids]
    assert clip_set.meter.decoded == sum(not cached or clip_id < 28 for clip_id in ids)
    assert whole.meter.decoded == 0


def test_what_was_not_expected_is_made_at_once(view: Path) -> None:
    clip_set, whole = streamed(view), open_clips(view)
    first, second, third = requests(whole, range(3))
    clip_set.expect([first, third])
    for request in (second, first, first, third):
        assert np.array_equal(clip_set.prepare(*request), whole.prepare(*request))
    clip_set.expect(())
    assert np.array_equal(clip_set.prepare(*first), whole.prepare(*first))


def test_no_more_is_in_flight_than_allowed(view: Path) -> None:
    clip_set = open_clips(view, cached=False)
    assert isinstance(clip_set.frames_of, Frames)
    stream = Stream(clip_set.frames_of, 3, Meter())
    asked = []

    def endless() -> Iterator[Request]:
        for number in range(1000):
            asked.append(number)
            yield Request((number % 30,), CLIP, (0.5,))

    stream.expect(endless())
    for number in range(10):
        assert len(asked) == 3 + number
        assert stream.take(Request((number % 30,), CLIP, (0.5,))) is not None
    stream.expect(iter(()))
    assert not stream.coming


def test_a_video_that_changes_under_a_stage_is_named(
    manifest: Manifest, view: Path, tmp_path: Path
) -> None:
    videos = shutil.copytree(manifest.root, tmp_path / "clips")
    mine = datasets.load(videos, trains=True)
    fill(tmp_path, mine, limit=0)
    clip_set = streamed(data.folder_for(tmp_path, mine, SIDE))
    (videos / mine.clips[4].path).write_bytes(b"another video")
    request = Request((4,), CLIP, (0.5,))
    clip_set.expect([request])
    with pytest.raises(Mistake, match=r"changed since the run began .*\n  run the same again"):
        clip_set.prepare(*request)


# Whole stages.


def evaluations(train: Stage) -> list[Stage]:
    """Return the evaluations of twelve trials on one checkpoint."""
    configs = [
        replace(MEASURE.config, views=2, batch=10, reducers=(drop.Config(keep=0.3 + i / 20),))
        for i in range(12)
    ]
    return [replace(MEASURE, config=one, inputs=(("weights", train),)) for one in configs]


@pytest.mark.slow
def test_twelve_trials_decode_each_clip_once_and_are_the_same_without_the_cache(
    view: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """The cache was filled with one decoding a clip; see `view`."""
    train = replace(TRAIN, config=replace(TRAIN.config, steps=12))
    plan = (train, *evaluations(train))
    pools = {
        cached: Pool(1, 1, cluster.shares(2, 1), tmp_path / f"ray-{cached}", cached)
        for cached in (True, False)
    }
    stores = {cached: Store.open(tmp_path / f"store-{cached}") for cached in pools}
    for cached, pool in pools.items():
        pool.start(stores[cached].root)
        pool.serve(view, manifest.digest)
    for stage in plan:
        key = stage.key(manifest.digest)
        posted = [pool.board.post.remote(stage, key, "test") for pool in pools.values()]
        assert [ended["state"] for ended in ray.get(posted)] == ["done", "done"]
        ours, theirs = (store.find(key) for store in stores.values())
        assert ours is not None
        assert theirs is not None
        assert ours.metrics == theirs.metrics
        for name in json.loads((ours.folder.parent / "DONE").read_text())["hashes"]:
            if name != "metrics.json":  # where seconds stand, too
                assert (ours.folder / name).read_bytes() == (theirs.folder / name).read_bytes()
    seen = {cached: pool.snapshot() for cached, pool in pools.items()}
    assert all(pool.stop() for pool in pools.values())
    assert isinstance(train.config, finetune.Config)
    # What a group has prepared for an evaluation, it keeps for the next.
    trained, measured = 12 * train.config.batch, 2 * len(manifest.ids("val"))
    assert {cached: one["decoded"] for cached, one in seen.items()} == {
        True: 0,
        False: trained + measured,
    }
    assert all(0 < one["data_wait_s"] < one["busy_s"] for one in seen.values())


@pytest.mark.slow
def test_a_killed_rank_goes_on_in_its_epoch_without_the_cache(
    view: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """In the order that it was in: the bits are those of a training that nobody disturbed."""
    train = replace(TRAIN, config=replace(TRAIN.config, steps=400))
    store, elsewhere = Store.open(tmp_path / "killed"), Store.open(tmp_path / "undisturbed")
    pool = Pool(1, 1, cluster.shares(1, 1), tmp_path / "ray", cached=False)
    pool.start(store.root, checkpoint_s=0.05)
    pool.serve(view, manifest.digest)
    key = run_with_a_kill(pool, train, manifest.digest)
    assert pool.snapshot()["decoded"] > 0
    assert pool.stop()
    torch.set_num_threads(cluster.num_cores())
    launch = stages.in_process(open_clips(view), manifest.digest, elsewhere)
    stages.run(train, manifest.digest, elsewhere, launch)
    ours, theirs = store.find(key), elsewhere.find(key)
    assert ours is not None
    assert theirs is not None
    assert ours.weights.read_bytes() == theirs.weights.read_bytes()


# Two drivers, and kill -9.

DRIVER = """
import sys
from pathlib import Path
from orchestrator.environment import prepare
prepare()
from orchestrator import cluster, data, room
from workloads import datasets
root, videos = map(Path, sys.argv[1:])
manifest = datasets.load(videos, trains=True)
cluster.join(None)
folder = data.folder_for(root, manifest, 32)
pin = room.pin(folder)
data.fill(folder, manifest, 32, lambda done, total: print(done, flush=True))
"""


def test_a_killed_driver_leaves_nothing_that_counts_and_the_other_is_right(
    view: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """Both on one store; the living one has the same videos and some more, half of them shared."""
    root = tmp_path / "store"
    args = [sys.executable, "-c", DRIVER, str(root), str(manifest.root)]
    driver = subprocess.Popen(
        args, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, start_new_session=True
    )
    end = time.monotonic() + 90
    while not any(root.glob("cache/frames/*/*.npy")):
        assert driver.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(driver.pid, signal.SIGKILL)
    other = replace(manifest, digest="the other study")
    half = root / "cache" / "frames" / "00" / f".half{cache.PART}"  # as if it died in a write
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half of it")
    living = fill(root, other)
    driver.wait(timeout=30)
    assert living.stored == len(manifest.clips)
    again = fill(root, manifest)
    assert (again.decoded, again.stored) == (0, len(manifest.clips))
    assert not half.exists()
    for one in (manifest, other):
        clip_set = open_clips(data.folder_for(root, one, SIDE))
        for clip_id in range(len(manifest.clips)):
            truth = open_clips(view).frames_of(clip_id)
            assert np.array_equal(clip_set.frames_of(clip_id), truth)
