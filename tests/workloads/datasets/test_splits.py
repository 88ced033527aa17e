"""Every clip gets a side, groups stay whole, and classes get their shares wherever that can be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest

from workloads.datasets import Clip, splits
from workloads.mistakes import Mistake

THREE = {"train": 0.6, "val": 0.2, "test": 0.2}


def counts(clips: Iterable[Clip]) -> dict[tuple[str, str], int]:
    return dict(Counter((clip.label, clip.split) for clip in clips))


def many(label: str, count: int, split: str = "", group: str = "") -> list[Clip]:
    return [Clip(f"{label}/{split}{n:03d}.mp4", label, split, group) for n in range(count)]


def scenes(num_scenes: int, seed: int) -> list[Clip]:
    """Scenes of uneven size, as in found footage: a few are large, most hold a clip or two."""
    rng = random.Random(seed)
    clips = []
    for scene in range(num_scenes):
        size = min(20, int(rng.paretovariate(1.0)))
        labels = rng.choice((("fight",), ("calm",), ("fight", "calm")))
        for n in range(size):
            label = rng.choice(labels)
            clips.append(Clip(f"{label}/{scene:02d}-{n}.mp4", label, group=f"scene{scene:02d}"))
    return clips


def test_without_splits_a_study_that_trains_gets_three_sides() -> None:
    clips, notes = splits.assign(
        many("a", 50) + many("b", 10), trains=True, seed=0, field="--data x"
    )
    assert counts(clips) == {
        **{("a", "train"): 30, ("a", "val"): 10, ("a", "test"): 10},
        **{("b", "train"): 6, ("b", "val"): 2, ("b", "test"): 2},
    }
    assert notes == (
        "no splits given: 60% train, 20% val, 20% test, stratified by class",
        "no groups given: near-duplicate clips may leak between splits",
    )


def test_without_splits_a_study_that_only_evaluates_gets_val_and_test() -> None:
    clips, _ = splits.assign(many("a", 10), trains=False, seed=0, field="--data x")
    assert counts(clips) == {("a", "val"): 8, ("a", "test"): 2}


def test_given_splits_are_kept_and_need_no_note() -> None:
    given = many("a", 3, "train") + many("a", 1, "val")
    assert splits.assign(given, trains=True, seed=0, field="--data x") == (given, ())


def test_synonyms_of_val_are_val() -> None:
    given = many("a", 2, "Train") + many("a", 2, "validation") + many("a", 1, "valid")
    clips, _ = splits.assign(given, trains=True, seed=0, field="--data x")
    assert Counter(clip.split for clip in clips) == {"train": 2, "val": 3}


def test_val_is_carved_from_train_and_test_is_left_alone() -> None:
    given = many("a", 10, "train") + many("a", 7, "test")
    clips, notes = splits.assign(given, trains=True, seed=0, field="--data x")
    assert counts(clips) == {("a", "train"): 8, ("a", "val"): 2, ("a", "test"): 7}
    assert notes[0].startswith("no val split given, so train was divided: 80% train, 20% val")
    assert {clip.path for clip in clips if clip.split == "test"} == {
        clip.path for clip in given if clip.split == "test"
    }


def test_val_is_carved_by_group() -> None:
    given = [Clip(f"{n}.mp4", "ab"[n % 2], "train", f"scene{n // 4}") for n in range(40)]
    clips, notes = splits.assign(given, trains=True, seed=0, field="--data x")
    sides = {
        group: {c.split for c in clips if c.group == group} for group in {c.group for c in clips}
    }
    assert all(len(found) == 1 for found in sides.values())
    assert Counter(clip.split for clip in clips) == {"train": 32, "val": 8}
    assert notes == ("no val split given, so train was divided: 80% train, 20% val, by group",)


@pytest.mark.parametrize("num_scenes", [12, 20, 50, 100])
@pytest.mark.parametrize("seed", range(8))
def test_uneven_groups_stay_whole_and_fill_every_side(num_scenes: int, seed: int) -> None:
    given = scenes(num_scenes, seed)
    clips = splits.place(given, THREE, seed)
    assert sorted(clip.path for clip in clips) == sorted(clip.path for clip in given)
    side_of = {clip.group: clip.split for clip in clips}
    assert all(side_of[clip.group] == clip.split for clip in clips)
    found = counts(clips)
    for label in ("fight", "calm"):
        total = sum(clip.label == label for clip in given)
        groups = Counter(clip.group for clip in given if clip.label == label)
        for side, share in THREE.items():
            assert found[label, side] > 0
            # A group is not cut, so a side may miss its share by about the largest one.
            assert abs(found[label, side] - share * total) <= max(groups.values())


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_a_class_of_a_few_clips_is_on_every_side(count: int) -> None:
    clips = splits.place(many("rare", count) + many("common", 100), THREE, 0)
    assert all(counts(clips)["rare", side] >= 1 for side in THREE)


def test_two_clips_go_to_train_and_val_and_one_to_train() -> None:
    assert set(counts(splits.place(many("a", 2), THREE, 0))) == {("a", "train"), ("a", "val")}
    assert set(counts(splits.place(many("a", 1), THREE, 0))) == {("a", "train")}


def test_neither_the_order_of_the_rows_nor_the_day_changes_a_split() -> None:
    given = scenes(30, seed=1) + many("calm", 40)
    shuffled = random.Random(2).sample(given, len(given))
    first, second = (set(splits.place(clips, THREE, 3)) for clips in (given, shuffled))
    assert first == second


def test_the_seed_changes_a_split() -> None:
    given = many("a", 40)
    assert set(splits.place(given, THREE, 0)) != set(splits.place(given, THREE, 1))


def test_some_clips_without_a_group_are_told() -> None:
    given = many("a", 30, group="scene") + [Clip(f"a/x{n}.mp4", "a") for n in range(30)]
    _, notes = splits.assign(given, trains=True, seed=0, field="--data x")
    assert notes[1] == "30 of 60 clips have no group: near-duplicates may leak"


@pytest.mark.parametrize(
    ("clips", "complaint"),
    [
        (
            [Clip("a.mp4", "a", "train", "s1"), Clip("b.mp4", "a", "test", "s1")],
            'group "s1" lies in train and in test',
        ),
        (
            [Clip("a.mp4", "a", "train"), Clip("b.mp4", "a"), Clip("c.mp4", "a")],
            "2 of 3 clips have no split, such as b.mp4",
        ),
        ([Clip("a.mp4", "a", "holdout")], 'split "holdout" of a.mp4 is unknown'),
    ],
)
def test_contradictory_splits_are_a_mistake(clips: list[Clip], complaint: str) -> None:
    with pytest.raises(Mistake) as caught:
        splits.assign(clips, trains=True, seed=0, field="--data x")
    assert caught.value.what == f"--data x: {complaint}"
    assert caught.value.remedy
