"""A manifest has one order and one digest, hashes no file twice, and refuses what cannot work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from workloads.datasets import Clip, load
from workloads.mistakes import Mistake

MakeFiles = Callable[..., Path]


def two_classes(count: int = 10) -> list[str]:
    return [f"{label}/{n}.mp4" for label in ("run", "jump") for n in range(count)]


def test_ids_are_positions_by_path_and_labels_follow_the_sorted_classes(
    make_files: MakeFiles,
) -> None:
    manifest = load(make_files(*two_classes()), trains=True)
    assert [clip.path for clip in manifest.clips] == sorted(two_classes())
    assert manifest.classes == ("jump", "run")
    assert manifest.labels == (0,) * 10 + (1,) * 10
    ids = [manifest.ids(split) for split in ("train", "val", "test")]
    assert [len(split) for split in ids] == [12, 4, 4]
    assert sorted(sum(ids, ())) == list(range(20))
    assert all(manifest.clips[number].split == "val" for number in manifest.ids("val"))
    assert (manifest.root / manifest.clips[0].path).read_text() == "jump/0.mp4"


def test_folders_and_a_csv_of_the_same_rows_are_the_same_data(make_files: MakeFiles) -> None:
    root = make_files(*two_classes())
    rows = [f"{path},{path.split('/')[0]}" for path in reversed(two_classes())]
    (root / "videos.csv").write_text("\n".join(["path,label", *rows]))
    by_folder, by_csv = load(root, trains=True), load(root / "videos.csv", trains=True)
    assert by_folder.clips == by_csv.clips
    assert by_folder.digest == by_csv.digest
    assert by_csv.root == root


def test_the_digest_does_not_depend_on_the_place_or_the_time(make_files: MakeFiles) -> None:
    first, second = (make_files(*two_classes(), root=name) for name in ("here", "there"))
    os.utime(second / "run/0.mp4", (1, 1))
    assert load(first, trains=True).digest == load(second, trains=True).digest


def test_the_digest_depends_on_contents_names_and_splits(make_files: MakeFiles) -> None:
    root = make_files(*two_classes())
    digests = {
        load(root, trains=trains, seed=seed).digest
        for trains, seed in ((True, 0), (True, 1), (False, 0))
    }
    (root / "run/0.mp4").write_text("other content")
    digests.add(load(root, trains=True).digest)
    (root / "run/0.mp4").rename(root / "run/x.mp4")
    digests.add(load(root, trains=True).digest)
    assert len(digests) == 5


def test_remembered_hashes_are_used_instead_of_reading(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    root, hashes = make_files(*two_classes()), tmp_path / "store" / "hashes.json"
    first = load(root, trains=True, hashes=hashes)
    known = json.loads(hashes.read_text())
    assert len(known) == 20
    before = (root / "run/0.mp4").stat()
    (root / "run/0.mp4").write_text("RUN/0.mp4")  # as long, and made to look as old
    os.utime(root / "run/0.mp4", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(root, trains=True, hashes=hashes).digest == first.digest
    os.utime(root / "run/0.mp4")
    assert load(root, trains=True, hashes=hashes).digest != first.digest


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [1]}', "null"])
def test_a_torn_file_of_hashes_is_rebuilt(
    make_files: MakeFiles, tmp_path: Path, content: str
) -> None:
    root, hashes = make_files(*two_classes()), tmp_path / "hashes.json"
    hashes.write_text(content)
    digest = load(root, trains=True, hashes=hashes).digest
    assert digest == load(root, trains=True).digest
    assert len(json.loads(hashes.read_text())) == 20
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["hashes.json"]


def test_hashes_of_other_data_sets_are_kept(make_files: MakeFiles, tmp_path: Path) -> None:
    hashes = tmp_path / "hashes.json"
    for name in ("one", "two"):
        load(make_files(*two_classes(), root=name), trains=True, hashes=hashes)
    assert len(json.loads(hashes.read_text())) == 40


def test_notes_reach_the_manifest(make_files: MakeFiles) -> None:
    notes = load(make_files(*two_classes()), trains=True).notes
    assert "no groups given: near-duplicate clips may leak between splits" in notes


def test_a_missing_path_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(Mistake) as caught:
        load(tmp_path / "none", trains=True)
    assert caught.value.what == f"--data {tmp_path / 'none'}: does not exist"


def test_a_file_that_is_no_csv_is_a_mistake(make_files: MakeFiles) -> None:
    with pytest.raises(Mistake, match=r"is neither a folder nor a \.csv file"):
        load(make_files("a.mp4") / "a.mp4", trains=True)


def test_an_empty_folder_and_an_empty_csv_are_mistakes(make_files: MakeFiles) -> None:
    root = make_files("notes.txt")
    (root / "videos.csv").write_text("path,label\n")
    for data in (root, root / "videos.csv"):
        with pytest.raises(Mistake, match="no videos"):
            load(data, trains=True)


def test_a_single_class_is_a_mistake(make_files: MakeFiles) -> None:
    with pytest.raises(Mistake, match=r'only one class, "run" \(2 videos\)'):
        load(make_files("run/a.mp4", "run/b.mp4"), trains=True)


def test_a_class_without_val_clips_is_a_mistake_with_its_counts(make_files: MakeFiles) -> None:
    paths = ["train/run/a.mp4", "train/jump/b.mp4", "train/jump/c.mp4", "val/run/d.mp4"]
    root = make_files(*paths, "test/jump/e.mp4")
    with pytest.raises(Mistake) as caught:
        load(root, trains=True)
    assert caught.value.what == (
        f'--data {root}: class "jump" has no val clips (2 train, 0 val, 1 test)'
    )
    assert len(str(caught.value).splitlines()) <= 8


def test_a_class_without_train_clips_matters_only_if_something_trains(
    make_files: MakeFiles,
) -> None:
    """A study that trains nothing does not even read them."""
    root = make_files("train/run/a.mp4", "val/run/b.mp4", "val/jump/c.mp4")
    with pytest.raises(Mistake, match=r'class "jump" has no train clips \(0 train, 1 val, 0 test'):
        load(root, trains=True)
    jump, run = load(root, trains=False).clips
    assert (jump, run.split) == (Clip("val/jump/c.mp4", "jump", "val"), "val")


def test_a_class_of_one_clip_is_a_mistake(make_files: MakeFiles) -> None:
    with pytest.raises(Mistake, match='class "rare" has no val clips'):
        load(make_files(*two_classes(), "rare/a.mp4"), trains=True)
