"""The lists of published data sets are read as their papers describe them."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest

from workloads.datasets import Clip, published
from workloads.mistakes import Mistake


def written(root: Path, **files: str) -> Path:
    for name, content in files.items():
        (root / name.replace("__", ".")).write_text(content)
    return root


def loaded(kind: str, lists: Path, *videos: str, fold: int = 1) -> published.Found:
    return published.load(kind, lists, fold, map(PurePosixPath, videos), f"--annotations {kind}:x")


def test_ucf101_has_folds_and_groups(tmp_path: Path) -> None:
    written(
        tmp_path,
        trainlist02__txt="Archery/v_Archery_g08_c01.avi 3\nArchery/v_Archery_g08_c02.avi 3\n",
        testlist02__txt="Archery/v_Archery_g01_c01.avi\n\n",
    )
    videos = ("UCF/Archery/v_Archery_g08_c01.avi", "v_Archery_g01_c01.mp4")
    found = loaded("ucf101", tmp_path, *videos, fold=2)
    assert found.clips == [
        Clip("UCF/Archery/v_Archery_g08_c01.avi", "Archery", "train", "v_Archery_g08"),
        Clip("v_Archery_g01_c01.mp4", "Archery", "test", "v_Archery_g01"),
    ]
    assert found.missing == 1


def test_hmdb51_leaves_out_what_a_fold_does_and_groups_by_film(tmp_path: Path) -> None:
    written(
        tmp_path,
        brush_hair_test_split1__txt=(
            "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n"
            "April_09_brush_hair_u_nm_np1_ba_goo_1.avi 1 \n"
            "Film_brush_hair_u_cm_np1_ba_med_0.avi 2 \n"
            "Other_brush_hair_u_cm_np1_ba_med_0.avi 0 \n"
        ),
        run_test_split1__txt="Both_run_f_0.avi 1\nBoth_run_f_1.avi 2\n",
        run_test_split2__txt="Both_run_f_0.avi 2\n",
    )
    names = [line.split()[0] for path in tmp_path.glob("*1.txt") for line in path.open()]
    found = loaded("hmdb51", tmp_path, *(f"any/{name}" for name in names))
    assert found.missing == 0
    assert [(clip.label, clip.split, clip.group) for clip in found.clips] == [
        ("brush_hair", "train", "April_09/brush_hair"),
        ("brush_hair", "train", "April_09/brush_hair"),
        ("brush_hair", "test", "Film/brush_hair"),
        ("run", "train", ""),  # the film lies on both sides of the official split
        ("run", "test", ""),
    ]


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_ssv2_classes_are_templates(tmp_path: Path, prefix: str) -> None:
    for name, number in (("train", "1"), ("validation", "2")):
        row = {"id": number, "label": "holding a cup", "template": "Holding [something]"}
        (tmp_path / f"{prefix}{name}.json").write_text(json.dumps([row]))
    (tmp_path / "test-answers.csv").write_text("3;Holding something\n")
    found = loaded("ssv2", tmp_path, "1.webm", "2.webm", "3.webm", "4.webm")
    assert found.missing == 0
    assert [(clip.path, clip.split) for clip in found.clips] == [
        ("1.webm", "train"),
        ("2.webm", "val"),
        ("3.webm", "test"),
    ]
    assert {clip.label for clip in found.clips} == {"Holding something"}


def test_kinetics_clips_are_named_by_time_or_by_id(tmp_path: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split,is_cc\n"
    written(
        tmp_path,
        train__csv=f'{head}"rock, paper",---QUuC4vJs,84,94,train,0\nabseiling,b,0,10,train,0\n',
        val__csv=f"{head}abseiling,---QUuC4vJs,5,15,validate,0\nabseiling,gone,0,10,validate,0\n",
        test__csv="youtube_id,time_start,time_end,split\nx,0,10,test\n",
    )
    names = ("---QUuC4vJs_000084_000094.mp4", "v/---QUuC4vJs_000005_000015.mp4", "b.mp4")
    found = loaded("kinetics", tmp_path, *names)
    assert found.missing == 1
    assert found.clips == [
        Clip(names[0], "rock, paper", "train"),  # its source is in val, too
        Clip("b.mp4", "abseiling", "train", "b"),
        Clip(names[1], "abseiling", "val"),
    ]


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def test_a_file_is_given_to_one_row_and_what_no_row_names_is_counted(tmp_path: Path) -> None:
    rows = ("a,x,1,2,train", "b,x,5,6,validate", "c,y,1,2,train", "c,y,5,6,train", "d,z,0,9,train")
    written(tmp_path, all__csv=KINETICS + "\n".join(rows))
    found = loaded("kinetics", tmp_path, "x.mp4", "y.mp4", "u/z.mp4", "d/z.webm", "other.mp4")
    assert found.clips == [Clip("y.mp4", "c", "train", "y"), Clip("d/z.webm", "d", "train", "z")]
    assert found.refused == {"x.mp4": "named by rows that disagree: a in train, b in val"}
    assert found.twice == {"u/z.mp4": "named like another video: d/z.webm"}
    assert (found.missing, found.unlisted) == (0, ["other.mp4"])
    trimmed = loaded("kinetics", tmp_path, "x_000001_000002.mp4", "x_000005_000006.mp4")
    assert [(clip.label, clip.split) for clip in trimmed.clips] == [("a", "train"), ("b", "val")]
    assert (trimmed.missing, trimmed.refused, trimmed.unlisted) == (3, {}, [])


def test_a_list_that_names_a_file_twice_gives_one_clip(tmp_path: Path) -> None:
    names = "A/v_A_g01_c01.avi 1\nA/v_A_g01_c01.avi 1\n"
    written(tmp_path, trainlist01__txt=names, testlist01__txt="B/v_B_g01_c01.avi\n")
    found = loaded("ucf101", tmp_path, "p/v_A_g01_c01.avi", "q/v_A_g01_c01.mp4")
    assert found.clips == [Clip("p/v_A_g01_c01.avi", "A", "train", "v_A_g01")]
    assert list(found.twice) == ["q/v_A_g01_c01.mp4"]
    assert found.missing == 1


@pytest.mark.parametrize(
    ("kind", "files", "complaint"),
    [
        ("ucf101", {"trainlist01__txt": b"A/b.avi 1\nA/caf\xe9.avi 1\n"}, "trainlist01.txt: row 2"),
        (
            "hmdb51",
            {"run_test_split1__txt": b"caf\xe9.avi 1\n"},
            "run_test_split1.txt: row 1 is no",
        ),
        ("ssv2", {"train__json": b'[{"id": 1, "template": "caf\xe9"}]'}, "train.json: row 1 is no"),
        (
            "ssv2",
            {"test-answers__csv": b"1;a\n2;caf\xe9\n"},
            "test-answers.csv: row 2 is not UTF-8",
        ),
        (
            "kinetics",
            {"x__csv": KINETICS.encode() + b"caf\xe9,x,1,2,train\n"},
            "x.csv: row 2 is no",
        ),
        ("ucf101", {"trainlist01__txt": b"", "testlist01__txt": b"\n"}, "no video in any"),
        ("hmdb51", {"run_test_split1__txt": b"b.avi 0\n"}, "no video in any of the lists"),
        ("ssv2", {}, "no video in any of the lists"),
        ("ssv2", {"train__json": b'[{"id": 1, "template": null}]'}, "train.json: item 1 is not as"),
        ("ssv2", {"train__json": b'[{"id": [], "template": "a"}]'}, "train.json: item 1 is not as"),
        ("ssv2", {"train__json": b"[3]"}, "train.json: item 1 is not as published (3)"),
        ("ssv2", {"train__json": b'{"id": 1}'}, "train.json is not as published (no list)"),
        ("ssv2", {"train__json": b"["}, "train.json is not as published (Expecting"),
        ("kinetics", {"x__csv": f"{KINETICS}a,x,1,2\n".encode()}, "x.csv: row 2 has no split"),
        (
            "kinetics",
            {"x__csv": f"{KINETICS}a,x,inf,2,val\n".encode()},
            "row 2 is not as published",
        ),
        ("kinetics", {"x__csv": f"{KINETICS}a,x,1,2,gym\n".encode()}, "row 2 is not as published"),
        ("kinetics", {"x__csv": f'{KINETICS}"{"a" * 140000}'.encode()}, "x.csv: row 2 is not as"),
    ],
)
def test_lists_that_are_damaged_are_refused_by_file_and_row(
    tmp_path: Path, kind: str, files: dict[str, bytes], complaint: str
) -> None:
    written(tmp_path, **{"train__json": "[]", "validation__json": "[]"} if kind == "ssv2" else {})
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_bytes(content)
    with pytest.raises(Mistake) as caught:
        loaded(kind, tmp_path, "other.mp4")
    assert complaint in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "files", "complaint"),
    [
        ("mit", {}, "'mit' is unknown"),
        ("ucf101", {}, "no trainlist01.txt there"),
        ("ucf101", {"trainlist01__txt": "a.avi 1\n"}, "names a.avi, not CLASS/VIDEO.avi"),
        ("hmdb51", {}, "no CLASS_test_split1.txt there"),
        ("hmdb51", {"run_test_split1__txt": "a.avi 3\n"}, "'a.avi 3'"),
        ("ssv2", {}, "no something-something-v2-train.json there"),
        ("ssv2", {"train__json": '[{"id": "1"}]'}, "train.json: item 1 is not as published"),
        ("kinetics", {"x__csv": "path,label\n"}, "no list of Kinetics there"),
        (
            "kinetics",
            {"x__csv": "label,youtube_id,time_start,time_end,split\na,b,x,1,train\n"},
            "x.csv: row 2 is not as published",
        ),
        (
            "kinetics",
            {"x__csv": "label,youtube_id,time_start,time_end,split\na,b,0,1,train\n"},
            "none of 1 listed videos is in SRC, such as b_000000_000001",
        ),
    ],
)
def test_lists_that_are_not_as_published_are_refused(
    tmp_path: Path, kind: str, files: dict[str, str], complaint: str
) -> None:
    with pytest.raises(Mistake) as caught:
        loaded(kind, written(tmp_path, **files), "other.mp4")
    assert complaint in str(caught.value)


def test_folds_and_folders_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="ssv2 has 1"):
        loaded("ssv2", tmp_path, fold=2)
    with pytest.raises(Mistake, match="does not exist"):
        loaded("ucf101", tmp_path / "gone")
