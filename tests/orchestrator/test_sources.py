"""What is found has a safe name of its own, and what is odd is said or listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.sources import Listing, Lists, listing, safe
from workloads.mistakes import Mistake


def made(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(b"content")
    return root


def named(found: Listing) -> dict[str, tuple[str, str]]:
    return {source.link: (source.copy, source.clip.label) for source in found.sources}


def test_class_folders_give_labels_and_a_flat_folder_gives_none(tmp_path: Path) -> None:
    found = listing(made(tmp_path / "a", "run/x.mp4", "jump/y.avi", "notes.txt", "jump/z.TXT"))
    assert named(found) == {
        "jump/y.avi": ("jump/y.avi.mp4", "jump"),
        "run/x.mp4": ("run/x.mp4", "run"),
    }
    assert found.others == {".txt": 2}
    assert named(listing(made(tmp_path / "b", "x.mp4", ".hidden.mp4"))) == {"x.mp4": ("x.mp4", "")}


def test_a_video_between_class_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"x\.mp4 lies in no class folder"):
        listing(made(tmp_path, "x.mp4", "run/y.mp4"))


def test_no_two_videos_have_one_name(tmp_path: Path) -> None:
    made(tmp_path, "in/x.avi", "in/x.avi.mp4", "x.mp4", "y/x.mp4")
    table = tmp_path / "in" / "all.csv"
    table.write_text("path\nx.avi\nx.avi.mp4\n../x.mp4\n../y/x.mp4\n../../gone/x.mp4\n")
    found = listing(table)
    links = [source.link for source in found.sources]
    copies = [source.copy for source in found.sources]
    assert links == ["x.avi", "x.avi.mp4", "x.mp4", "y/x.mp4", "gone/x.mp4"]
    assert len({*copies, *links}) == 6
    assert copies[0].startswith("x.avi-")
    assert [source.size for source in found.sources] == [7, 7, 7, 7, -1]


def test_names_and_labels_beyond_utf8_and_blanks_are_written_out(tmp_path: Path) -> None:
    root = made(tmp_path, b"caf\xe9/a\n.mp4", b"run, fast / x .mp4", f"run/{'l' * 240}.mp4")
    found = listing(root)
    assert [source.link for source in found.sources][:1] == ["caf%E9/a%0A.mp4"]
    assert named(found)["run, fast%20/%20x .mp4"][1] == "run, fast%20"
    assert all(len(source.link) < 250 for source in found.sources)
    assert all(Path(source.file).is_file() for source in found.sources)
    assert safe(" \u00e9t\u00e9  ") == "%20\u00e9t\u00e9%20%20"


def test_links_to_folders_above_are_listed_and_not_followed(tmp_path: Path) -> None:
    made(tmp_path, "in/run/x.mp4", "in/jump/y.mp4", "out/z.mp4")
    (tmp_path / "in" / "run" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "run" / "self.mp4").symlink_to("self.mp4")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    found = listing(tmp_path / "in")
    links = [source.link for source in found.sources]
    assert links == ["away/z.mp4", "jump/y.mp4", "run/self.mp4", "run/x.mp4"]
    assert found.twice == (("run/round", "a link to a folder above it"),)


def test_a_folder_that_may_not_be_entered_is_listed(tmp_path: Path) -> None:
    made(tmp_path, "run/x.mp4", "jump/y.mp4")
    (tmp_path / "jump").chmod(0)
    as_nobody = os.geteuid() == 0
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    if as_nobody:
        os.seteuid(65534)
    try:
        found = listing(tmp_path)
    finally:
        if as_nobody:
            os.seteuid(0)
        (tmp_path / "jump").chmod(0o755)
    assert found.closed == (("jump", "permission denied"),)
    assert [source.link for source in found.sources] == ["run/x.mp4"]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("label\nrun\n", 'no column "path"'),
        ("path\nx.mp4\n./x.mp4\n", "repeats x.mp4"),
    ],
)
def test_a_table_that_does_not_say_what_is_in_it_is_refused(
    tmp_path: Path, rows: str, complaint: str
) -> None:
    (tmp_path / "all.csv").write_text(rows)
    with pytest.raises(Mistake) as caught:
        listing(tmp_path / "all.csv")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "doubt", "found"),
    [
        ("x.mp4,train,\ny.mp4,,\n", "1 of 2 clips have no split", ["train", ""]),
        ("x.mp4,train,a\ny.mp4,test,a\n", "lies in train and in test", ["train", "test"]),
        ("x.mp4,train,\ny.mp4,other,\n", 'split "other" of y.mp4', ["train", "other"]),
        ("x.mp4,Train,\ny.mp4,valid,\n", "", ["train", "val"]),
    ],
)
def test_what_no_study_would_take_is_said_and_kept(
    tmp_path: Path, rows: str, doubt: str, found: list[str]
) -> None:
    (tmp_path / "all.csv").write_text("path,split,group\n" + rows)
    listed = listing(tmp_path / "all.csv")
    assert doubt in listed.doubt
    assert bool(doubt) == bool(listed.doubt)
    assert [source.clip.split for source in listed.sources] == found


@pytest.mark.parametrize(("name", "what"), [("gone", "does not exist"), ("x.mp4", "neither")])
def test_what_is_no_folder_and_no_table_is_refused(tmp_path: Path, name: str, what: str) -> None:
    made(tmp_path, "x.mp4")
    with pytest.raises(Mistake, match=what):
        listing(tmp_path / name)


def test_labels_and_splits_may_be_from_the_lists_of_a_published_data_set(tmp_path: Path) -> None:
    made(tmp_path, "in/any/v_Archery_g08_c01.avi", "in/v_Archery_g01_c01.avi", "in/unlisted.avi")
    (tmp_path / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\n")
    (tmp_path / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\nArchery/gone.avi\n")
    found = listing(tmp_path / "in", Lists("ucf101", tmp_path))
    assert (found.missing, found.unlisted) == (1, ("unlisted.avi",))
    assert {source.link: source.clip.split for source in found.sources} == {
        "any/v_Archery_g08_c01.avi": "train",
        "v_Archery_g01_c01.avi": "test",
    }


def test_a_file_that_rows_disagree_about_is_listed_with_the_reason(tmp_path: Path) -> None:
    made(tmp_path, "in/x.mp4", "in/y.mp4", "in/y.webm")
    rows = "a,x,1,2,train\nb,x,5,6,val\nb,x,8,9,val\nc,y,1,2,train\n"
    (tmp_path / "all.csv").write_text("label,youtube_id,time_start,time_end,split\n" + rows)
    found = listing(tmp_path / "in", Lists("kinetics", tmp_path))
    assert [source.link for source in found.sources] == ["y.mp4"]
    assert found.closed == (("x.mp4", "named by rows that disagree: a in train, b in val"),)
    assert found.twice == (("y.webm", "named like another video: y.mp4"),)


def test_what_is_shown_of_any_name_is_utf8(tmp_path: Path) -> None:
    root = made(tmp_path / "in", b"run/note.\xff", b"run/caf\xe9", b"run/x\xff.mp4", "jump/y.mp4")
    (root / "jump" / "to").symlink_to("../run")
    found = listing(root)
    assert found.others == {".%FF": 1, "caf%E9": 1}
    assert found.twice == (("jump/to", "reached already, as run"),)
    (tmp_path / "trainlist01.txt").write_text("a/y.avi 1\n")
    (tmp_path / "testlist01.txt").write_text("")
    assert listing(root, Lists("ucf101", tmp_path)).unlisted == ("run/x%FF.mp4",)
