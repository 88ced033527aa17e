"""Copies of a video never lie on two sides."""

from __future__ import annotations

from orchestrator.twins import settle
from workloads.datasets import Clip


def test_copies_stay_on_the_side_that_judges() -> None:
    clips = [
        Clip("a.mp4", "run", "train"),
        Clip("b.mp4", "run", "val"),
        Clip("c.mp4", "run", "test"),
        Clip("d.mp4", "run", "train"),
    ]
    settled = settle(clips, {"a.mp4": "x", "b.mp4": "x", "c.mp4": "x", "d.mp4": "y"})
    assert [clip.path for clip in settled.clips] == ["c.mp4", "d.mp4"]
    assert settled.leaving == {
        "a.mp4": "shows the same as c.mp4, which is in test",
        "b.mp4": "shows the same as c.mp4, which is in test",
    }
    assert settled.notes == {}


def test_copies_without_a_split_become_one_group_with_all_that_were_theirs() -> None:
    clips = [
        Clip("a.mp4", "run", "", "scene1"),
        Clip("b.mp4", "run", "", "scene1"),
        Clip("c.mp4", "run", "", "scene2"),
        Clip("d.mp4", "run", "", "scene2"),
        Clip("e.mp4", "jump"),
        Clip("f.mp4", "jump"),
        Clip("g.mp4", "jump", "", "scene3"),
    ]
    pictures = {"a.mp4": "1", "b.mp4": "2", "c.mp4": "2", "d.mp4": "3", "e.mp4": "3"}
    settled = settle(clips, {**pictures, "f.mp4": "4", "g.mp4": "5"})
    assert [clip.group for clip in settled.clips] == [*["scene1"] * 5, "", "scene3"]
    assert settled.leaving == {}
    assert settled.notes == {
        "c.mp4": "shows the same as b.mp4",
        "e.mp4": "shows the same as d.mp4, which is labelled run",
    }


def test_two_copies_without_groups_get_one() -> None:
    clips = [Clip("a.mp4", "run"), Clip("b.mp4", "run"), Clip("c.mp4", "run")]
    settled = settle(clips, {"a.mp4": "1", "b.mp4": "2", "c.mp4": "1"})
    assert [clip.group for clip in settled.clips] == ["a.mp4", "", "a.mp4"]
