"""A CSV is read as spreadsheets and scripts write it; what is wrong is said with its row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from workloads.datasets import Clip, csv
from workloads.mistakes import Mistake

MakeFiles = Callable[..., Path]


def table(root: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = root / "videos.csv"
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def test_further_columns_are_ignored_and_empty_is_not_given(make_files: MakeFiles) -> None:
    root = make_files("a.mp4", "sub/b.mp4")
    path = table(
        root,
        "fps,path,label,group,split",
        "25,a.mp4,run,scene1,train",
        "30, ./sub/b.mp4 , jump ,,",
    )
    assert csv.rows(path, "--data x") == [
        Clip("a.mp4", "run", "train", "scene1"),
        Clip("sub/b.mp4", "jump"),
    ]


def test_what_decord_was_proved_on_is_known_by_its_content(make_files: MakeFiles) -> None:
    root = make_files("a.mp4", "b.mp4", "c.mp4")
    lines = ("a.mp4,run,decord,abc", "b.mp4,run,pyav,def", "c.mp4,run,decord,")
    rows = csv.rows(table(root, "path,label,decoder,sha256", *lines), "f")
    assert [clip.proved for clip in rows] == ["abc", "", ""]


def test_two_columns_are_enough_and_short_rows_are_padded(make_files: MakeFiles) -> None:
    root = make_files("a.mp4", "b.mp4")
    assert csv.rows(table(root, "path,label", "a.mp4,run"), "f") == [Clip("a.mp4", "run")]
    path = table(root, "path,label,split,group", "b.mp4,run")
    assert csv.rows(path, "f") == [Clip("b.mp4", "run")]


def test_files_of_spreadsheets_are_read(make_files: MakeFiles) -> None:
    """A byte order mark, quotes, line ends of Windows, names beyond ASCII."""
    root = make_files("a, b.mp4", "\u00e9t\u00e9.mp4")
    lines = ("path,label\r", '"a, b.mp4","run, fast"\r', "\u00e9t\u00e9.mp4,sommer\r")
    rows = csv.rows(table(root, *lines, encoding="utf-8-sig"), "f")
    assert rows == [Clip("a, b.mp4", "run, fast"), Clip("\u00e9t\u00e9.mp4", "sommer")]


def test_paths_beside_the_folder_and_absolute_ones_become_relative(make_files: MakeFiles) -> None:
    root, other = make_files(), make_files("a.mp4", "b.mp4", root="other")
    path = table(root, "path,label", "../other/a.mp4,run", f"{other / 'b.mp4'},run")
    assert [clip.path for clip in csv.rows(path, "f")] == ["../other/a.mp4", "../other/b.mp4"]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (("file,label", "a.mp4,run"), 'no column "path" (columns found: file, label)'),
        (("path;label", "a.mp4;run"), 'no column "path" (columns found: path;label)'),
        ((), 'no column "path" (columns found: none)'),
        (("path,label", "a.mp4,run", "b.mp4,"), "row 3 has no label"),
        (("path,label", ",run"), "row 2 has no path"),
        (
            ("path,label", "a.mp4,run", "b.mp4,run", "./a.mp4,jump"),
            "row 4 repeats a.mp4 of row 2",
        ),
        (
            ("path,label", "a.mp4,run", "c.mp4,run", "d.mp4,run"),
            "2 of 3 videos do not exist, the first in row 3: c.mp4",
        ),
    ],
)
def test_what_is_wrong_is_a_mistake_with_its_row(
    make_files: MakeFiles, lines: tuple[str, ...], complaint: str
) -> None:
    path = table(make_files("a.mp4", "b.mp4"), *lines)
    with pytest.raises(Mistake) as caught:
        csv.rows(path, "--data x")
    assert caught.value.what == f"--data x: {complaint}"
    assert caught.value.remedy


def test_another_encoding_is_a_mistake(make_files: MakeFiles) -> None:
    path = table(make_files("a.mp4"), "path,label", "a.mp4,\u00e9t\u00e9", encoding="latin-1")
    with pytest.raises(Mistake, match="not a UTF-8 CSV"):
        csv.rows(path, "--data x")
