"""Synthetic clips: each depends on its own seed only, and only their motion carries the label."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workloads.datasets import load, synthetic
from workloads.datasets.shapes import DIRECTIONS, Look, render
from workloads.datasets.synthetic import Config
from workloads.mistakes import Mistake
from workloads.readers import read

SMALL = Config(train=8, val=4, test=4, directions=("right", "left"))
STEADY = Look(distractors=0, noise=(0, 0), drift=0, shaking=0, waving=0)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.mp4")}


def places(clip_TSSC: np.ndarray) -> np.ndarray:
    """Return the actor's centre (T, 2) as (x, y), on a ground without relief."""
    ground_C = np.median(clip_TSSC, axis=(0, 1, 2))
    actor_TSS = np.abs(clip_TSSC - ground_C).max(axis=3) > 20
    return np.array([np.argwhere(frame)[:, ::-1].mean(axis=0) for frame in actor_TSS])


def test_a_set_is_laid_out_like_class_folders(tmp_path: Path) -> None:
    folder = synthetic.write(SMALL, tmp_path / "shapes")
    manifest = load(folder, trains=True)
    assert manifest.classes == ("left-quick", "left-slow", "right-quick", "right-slow")
    assert [len(manifest.ids(split)) for split in ("train", "val", "test")] == [8, 4, 4]
    assert manifest.notes == ()
    paths = [clip.path for clip in manifest.clips if clip.split == "val"]
    assert sorted(paths, key=lambda path: path[-9:]) == [
        f"val/{name}/{index:05d}.mp4" for index, name in enumerate(SMALL.classes)
    ]
    for clip in manifest.clips:
        assert read(folder / clip.path).shape == (16, 40, 40, 3)


def test_few_classes_make_a_small_test(tmp_path: Path) -> None:
    config = replace(SMALL, speeds=("slow",), side=32, frames=8)
    folder = synthetic.write(config, tmp_path / "shapes")
    assert config.classes == ("right-slow", "left-slow")
    assert read(folder / "test/left-slow/00003.mp4").shape == (8, 32, 32, 3)


def test_clips_depend_neither_on_their_number_nor_on_the_processes(tmp_path: Path) -> None:
    one = files_of(synthetic.write(SMALL, tmp_path / "one"))
    more = files_of(synthetic.write(replace(SMALL, train=60), tmp_path / "more", processes=2))
    assert len(one) == 16
    assert one == {path: more[path] for path in one}
    assert len(set(more.values())) == 68, "no clip is like another"


def test_another_seed_draws_other_clips(tmp_path: Path) -> None:
    one = files_of(synthetic.write(SMALL, tmp_path / "one"))
    two = files_of(synthetic.write(replace(SMALL, seed=1), tmp_path / "two"))
    assert one.keys() == two.keys()
    assert not set(one.values()) & set(two.values())


def test_progress_counts_up_to_all_clips(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = replace(SMALL, train=60)
    synthetic.write(config, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == [25, 50, 60, 64, 68]
    assert {total for _, total in seen} == {68}


def test_a_complete_folder_is_returned_at_once(tmp_path: Path) -> None:
    synthetic.write(SMALL, tmp_path)
    gone = tmp_path / "val/left-slow/00002.mp4"
    gone.unlink()
    synthetic.write(SMALL, tmp_path, progress=pytest.fail)
    assert not gone.exists()


def test_an_unfinished_folder_is_completed_without_drawing_anything_twice(tmp_path: Path) -> None:
    whole = files_of(synthetic.write(SMALL, tmp_path))
    (tmp_path / synthetic.MARKER).unlink()
    gone = tmp_path / "val/left-slow/00002.mp4"
    gone.unlink()
    kept = tmp_path / "val/left-quick/00003.mp4"
    before = kept.stat().st_mtime_ns
    assert files_of(synthetic.write(SMALL, tmp_path)) == whole
    assert kept.stat().st_mtime_ns == before


KILLED = """
import os, signal, sys
from pathlib import Path
from workloads.datasets.synthetic import Config, write

def die(done, total):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    config = Config(train=200, val=4, test=4, directions=("right", "left"))
    write(config, Path(sys.argv[1]), processes=int(sys.argv[2]), progress=die)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_writer_leaves_only_whole_clips_and_can_be_repeated(
    tmp_path: Path, processes: int
) -> None:
    folder, script = tmp_path / "shapes", tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(folder), str(processes)]
    writer = subprocess.run(command, stderr=subprocess.DEVNULL)
    assert writer.returncode == -signal.SIGKILL
    assert not (folder / synthetic.MARKER).exists()
    left = files_of(folder)
    assert len(left) == 25 if processes == 1 else len(left) >= 25  # a pool ends its batches
    assert all(len(read(folder / path)) == 16 for path in left)
    config = replace(SMALL, train=200)
    whole = files_of(synthetic.write(config, folder))
    assert whole == files_of(synthetic.write(config, tmp_path / "undisturbed"))


def test_a_folder_of_another_config_is_a_mistake(tmp_path: Path) -> None:
    synthetic.write(SMALL, tmp_path)
    with pytest.raises(Mistake, match="another config"):
        synthetic.write(replace(SMALL, look=Look(drift=0.03)), tmp_path)


def test_a_folder_with_other_files_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(Mistake, match="holds other files"):
        synthetic.write(SMALL, tmp_path)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"side": 41}, "side=41 must be even"),
        ({"frames": 4}, "frames=4 must be at least 8"),
        ({"directions": ("right", "north")}, "must be among"),
        ({"speeds": ("right",)}, "must be among"),
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Config(**fields)


@pytest.mark.parametrize("pair", [("right", "left"), ("down", "up")])
@pytest.mark.parametrize("speed", ["slow", "quick"])
def test_opposite_directions_are_the_same_frames_in_opposite_order(
    pair: tuple[str, str], speed: str
) -> None:
    for seed in range(10):
        there, back = (
            render(STEADY, way, speed, side=40, frames=16, rng=np.random.default_rng(seed))
            for way in pair
        )
        assert np.array_equal(there, back[::-1])
        assert not np.array_equal(there, back)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("speed", ["slow", "quick"])
def test_the_actor_goes_where_its_class_says(direction: str, speed: str) -> None:
    towards = np.array({"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}[direction])
    bare = replace(STEADY, relief=0, spin=0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        places_T2 = places(render(bare, direction, speed, side=64, frames=16, rng=rng))
        steps_T2 = np.diff(places_T2, axis=0)
        is_moving = np.abs(steps_T2).max(axis=1) > 0.3
        assert (12 <= is_moving.sum() <= 15) if speed == "slow" else (3 <= is_moving.sum() <= 5)
        assert speed == "slow" or not (is_moving[0] or is_moving[-1]), "quick ones rest at first"
        assert (steps_T2[is_moving] @ towards > 0).all()
        way = places_T2[-1] - places_T2[0]
        assert 0.45 * 64 < way @ towards < 0.75 * 64, "both speeds go as far"
        assert abs(way @ towards[::-1]) < 0.1 * 64


def test_disturbances_do_not_tell_forwards_from_backwards() -> None:
    """Drift, waving, shake and noise: as much change early as late, over many clips."""
    look = replace(Look(), shaking=1, waving=1)
    changes_T = np.zeros(15)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        clip_TSSC = render(look, "right", "slow", side=40, frames=16, rng=rng).astype(float)
        changes_T += np.abs(np.diff(clip_TSSC, axis=0)).mean(axis=(1, 2, 3))
    halves = changes_T[:7].sum(), changes_T[-7:].sum()
    assert abs(halves[0] / halves[1] - 1) < 0.05


def test_a_quarter_of_the_tubelets_changes_by_a_tenth_of_a_deviation(tmp_path: Path) -> None:
    """The demo lives on this share: RLT's kept tokens at tau 0.1, patch 8, after compression."""
    folder = synthetic.write(Config(train=0, val=80, test=0), tmp_path)
    kept = []
    for path in sorted(folder.rglob("*.mp4")):
        x = (read(path) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        change = np.abs(x[3::2] - x[:-3:2]).reshape(7, 5, 8, 5, 8, 3).mean(axis=(2, 4, 5))
        kept.append((25 + (change > 0.1).sum()) / 200)
    assert 0.22 < np.mean(kept) < 0.32


def test_importing_the_generator_is_light_for_spawned_processes() -> None:
    code = (
        "import sys, workloads.datasets.synthetic\n"
        "assert not {'torch', 'av', 'decord', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
