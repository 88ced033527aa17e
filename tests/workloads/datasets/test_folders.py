"""Class folders are read as a person arranged them, or the person hears what is odd."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from workloads.datasets import Clip, folders
from workloads.mistakes import Mistake

MakeFiles = Callable[..., Path]


def test_a_folder_is_a_class_at_any_depth(make_files: MakeFiles) -> None:
    root = make_files("run/a.mp4", "run/park/b.MP4", "jump/c.webm")
    assert folders.rows(root, "--data x") == [
        Clip("jump/c.webm", "jump"),
        Clip("run/a.mp4", "run"),
        Clip("run/park/b.MP4", "run"),
    ]


def test_top_folders_named_like_splits_are_splits(make_files: MakeFiles) -> None:
    root = make_files("train/run/a.mp4", "Val/run/park/b.mp4", "test/jump/c.mp4")
    assert folders.rows(root, "--data x") == [
        Clip("Val/run/park/b.mp4", "run", "Val"),
        Clip("test/jump/c.mp4", "jump", "test"),
        Clip("train/run/a.mp4", "run", "train"),
    ]


def test_hidden_and_other_files_are_passed_over(make_files: MakeFiles) -> None:
    root = make_files(
        "run/a.mp4", "run/._a.mp4", ".trash/run/b.mp4", "run/.old/c.mp4", "run/notes.txt", "x.json"
    )
    assert folders.rows(root, "--data x") == [Clip("run/a.mp4", "run")]


def test_linked_class_folders_are_followed_and_dangling_links_are_named(
    make_files: MakeFiles,
) -> None:
    """A disk that is not mounted, for one: results must not depend on what was there that day."""
    root, elsewhere = make_files("run/a.mp4"), make_files("b.mp4", root="elsewhere")
    (root / "jump").symlink_to(elsewhere)
    assert [clip.path for clip in folders.rows(root, "--data x")] == ["jump/b.mp4", "run/a.mp4"]
    (root / "run" / "gone.mp4").symlink_to(root / "nowhere.mp4")
    with pytest.raises(Mistake, match=r"--data x: 'run/gone.mp4': no file\n  put that right, or"):
        folders.rows(root, "--data x")


def test_names_that_no_table_takes_are_a_mistake(make_files: MakeFiles) -> None:
    root = make_files("run/a.mp4")
    for name in (b"caf\xe9.mp4", b"th\xe9.mp4"):
        (root / "run" / os.fsdecode(name)).touch()
    told = r"--data x: 'run/caf\\udce9.mp4': its name is not UTF-8 \(2 in all\)"
    with pytest.raises(Mistake, match=told):
        folders.rows(root, "--data x")


def test_folders_that_link_to_each_other_are_entered_once(make_files: MakeFiles) -> None:
    names = [f"d{number}" for number in range(8)]
    root = make_files(*(f"{name}/v.mp4" for name in names))
    for name in names:
        for other in names:
            (root / name / f"to-{other}").symlink_to(f"../{other}")
    found = folders.walk(root)
    assert [str(video) for video in found.videos] == [f"{name}/v.mp4" for name in names]
    assert len(found.twice) == 64
    assert dict(found.twice)["d1/to-d0"] == "reached already, as d0"
    assert dict(found.twice)["d1/to-d1"] == "a link to a folder above it"


def test_folders_come_before_links_and_links_by_name(make_files: MakeFiles) -> None:
    root, pool = make_files("z/v.mp4"), make_files("run/a.mp4", "jump/b.mp4", root="pool")
    (root / "a").symlink_to("z")
    (root / "c").symlink_to(pool / "run")
    (root / "z" / "pool").symlink_to(pool)
    (pool / "jump" / "more").symlink_to(make_files("c.mp4", root="more"))
    (root / "z" / "more").symlink_to(root.parent / "more")
    found = folders.walk(root)
    assert [*map(str, found.videos)] == ["c/a.mp4", "z/more/c.mp4", "z/pool/jump/b.mp4", "z/v.mp4"]
    assert sorted(found.twice) == [
        ("a", "reached already, as z"),
        ("z/pool/jump/more", "reached already, as z/more"),
        ("z/pool/run", "reached already, as c"),
    ]


def test_a_folder_that_is_shut_is_not_entered_by_any_link(make_files: MakeFiles) -> None:
    root, out = make_files("run/a.mp4"), make_files("out/videos/run/a.mp4", root="near") / "out"
    (root / "run" / "above").symlink_to(out.parent)
    (root / "run" / "below").symlink_to(out / "videos" / "run")
    (root / "run" / "there").symlink_to(out)
    found = folders.walk(root, out)
    assert [*map(str, found.videos)] == ["run/a.mp4"]
    assert sorted(found.twice) == [
        (f"run/{name}", "what is made here lies there") for name in ("above/out", "below", "there")
    ]


def test_a_class_may_be_called_train(make_files: MakeFiles) -> None:
    root = make_files("bus/a.mp4", "train/b.mp4", "train/steam/c.mp4")
    assert [clip.label for clip in folders.rows(root, "--data x")] == ["bus", "train", "train"]


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        (("a.mp4", "b.mp4"), "a.mp4 lies in no class folder"),
        (("run/a.mp4", "b.mp4"), "b.mp4 lies in no class folder"),
        (("train/a.mp4", "val/b.mp4"), "train/a.mp4 lies in no class folder"),
        (("train/run/a.mp4", "extra/run/b.mp4"), 'folder "extra" stands beside the splits'),
    ],
)
def test_other_arrangements_are_a_mistake_that_says_how_to_arrange(
    make_files: MakeFiles, paths: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(Mistake) as caught:
        folders.rows(make_files(*paths), "--data x")
    assert caught.value.what == f"--data x: {complaint}"
    assert "<class>/x.mp4" in caught.value.remedy
