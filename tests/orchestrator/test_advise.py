"""Advice on videos: numbers with intervals, by class, and plain words."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator import advise
from orchestrator.__main__ import main
from workloads import survey as surveys
from workloads.datasets import synthetic

SIDE = 64


def clip(seed: int, moving: bool) -> bytes:
    """A still picture, or noise in every frame."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 255, (30 if moving else 1, 8, 8, 3), np.uint8)
    frames_THWC = np.kron(np.broadcast_to(tiles, (30, 8, 8, 3)), np.ones((1, 8, 8, 1), np.uint8))
    return synthetic.encode(frames_THWC.astype(np.uint8), fps=30)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for label, moving in (("camera on a wall", False), ("handheld", True)):
        (root / label).mkdir()
        for number in range(3):
            (root / label / f"{number}.mp4").write_bytes(clip(number, moving))
    (root / "handheld" / "broken.mp4").write_bytes(b"no video")
    return root


def test_still_and_moving_classes_are_told_apart(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["advise", str(videos), "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    made = json.loads(said.out.splitlines()[-1])
    assert (made["videos"], made["surveyed"], made["unreadable"]) == (7, 6, 1)
    assert set(made["classes"]) == {"camera on a wall", "handheld"}
    kept = {label: found["rlt"]["0.1"] for label, found in made["classes"].items()}
    assert kept["camera on a wall"] == pytest.approx([0.125] * 3, abs=0.01)
    assert kept["handheld"][0] > 0.4  # the clips end early, and their last frames repeat
    _, low, high = made["all"]["rlt"]["0.1"]
    assert kept["camera on a wall"][0] < low < high < kept["handheld"][0]
    assert made["classes"]["handheld"]["rlt_by_rate"]["7.5 fps"]["0.1"][0] > 0.9
    assert made["classes"]["camera on a wall"]["saving"]["base"]["0.1"][0] > 0.85
    assert "camera on a wall: mostly still; RLT at 0.1 saves 90 % of the MACs" in said.err
    assert "\nall: " in said.err
    assert json.loads((out / "advice.json").read_text())["surveyed"] == 6
    assert (out / "advice.png").read_bytes()[:4] == b"\x89PNG"


def test_a_short_time_ends_the_survey_after_a_video_of_each_class_in_turn(videos: Path) -> None:
    order = [(label, Path(label)) for label in "aaabbc"]
    assert [label for label, _ in advise._in_turn(order)] == list("abcaba")
    from orchestrator.display import Display

    found = advise.advise(videos, 0.0, Display())
    assert len(found.by_class[advise.ALL]) == 1


def test_classes_may_be_called_anything(tmp_path: Path) -> None:
    kept = dict.fromkeys(surveys.TAUS, 0.5)
    one = surveys.Survey(
        kept=kept,
        by_rate=dict.fromkeys(surveys.RATES, kept),
        motion=dict.fromkeys(("mats", "flux"), dict.fromkeys(surveys.KEEPS, 0.5)),
    )
    other = replace(one, kept=dict.fromkeys(surveys.TAUS, 0.9))
    classes = {"$a_$": [one], "all": [other], "_x": [one], advise.ALL: [one, other, one]}
    made = advise.answer(advise.Advice(classes, total=3, unreadable=0, seconds=1.0))
    assert made["surveyed"] == 3
    assert [found["videos"] for found in made["classes"].values()] == [1, 1, 1]
    assert made["all"]["videos"] == 3
    words = advise.told(made)[-4:]
    assert [line.partition(":")[0] for line in words] == ["$a_$", "_x", "all", "all"]
    assert "all of it moves" in words[2]
    assert "partly still" in words[3]
    out = Path(f"{tmp_path}/{os.fsdecode(bytes([0xFF]))}")
    assert advise.write(made, out)[1] == f"{tmp_path}/%FF/advice.png"
    assert (out / "advice.png").is_file()


def test_the_interval_narrows_with_the_videos() -> None:
    values = [0.2, 0.4] * 4
    few, many = advise.share_of(values), advise.share_of(values * 16)
    assert few.mean == many.mean == pytest.approx(0.3)
    assert few.low < many.low < 0.3 < many.high < few.high
    assert advise.share_of([0.5]) == (0.5, 0.5, 0.5)
    assert str(advise.Share(0.5, 0.45, 0.55)) == "50 +-5"


def test_where_nothing_can_be_read_nothing_is_advised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    assert main(["advise", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "none can be read" in capsys.readouterr().err
