"""The table, the Markdown and the files of a study of 24 trials like the demo's."""

from __future__ import annotations

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.front import front_of, hypervolume, knee, pair_of
from orchestrator.report import markdown, table, write
from orchestrator.words import duration, method
from search_spaces.objectives import GMACS, TOP1

OBJECTIVES = (TOP1, GMACS)
TRAINED = {"finetune.reducer": "rlt", "finetune.tau": 0.1}
# Reducer, knob, top1, gmacs, tokens: on the dense checkpoint, then on one trained with rlt.
ON_DENSE = (
    ("none", {}, 0.839, 0.0498, 200.0),
    ("rlt", {"tau": 0.02}, 0.836, 0.0314, 136.2),
    ("rlt", {"tau": 0.05}, 0.829, 0.0174, 84.1),
    ("rlt", {"tau": 0.1}, 0.824, 0.0099, 51.3),
    ("rlt", {"tau": 0.2}, 0.824, 0.00772, 40.4),
    ("rlt", {"tau": 0.3}, 0.770, 0.00667, 36.0),
    ("rlt", {"tau": 0.4}, 0.701, 0.00601, 32.3),
    ("tome", {"r": 20}, 0.840, 0.0423, 180.0),
    ("tome", {"r": 40}, 0.839, 0.0349, 160.0),
    ("tome", {"r": 50}, 0.807, 0.0314, 150.0),
    ("tome", {"r": 60}, 0.806, 0.0289, 140.0),
    ("tome", {"r": 70}, 0.767, 0.0269, 130.0),
    ("drop", {"keep": 0.2}, 0.461, 0.0077, 40.0),
    ("drop", {"keep": 0.3}, 0.551, 0.0116, 60.0),
    ("drop", {"keep": 0.5}, 0.672, 0.0210, 100.0),
    ("drop", {"keep": 0.7}, 0.766, 0.0315, 140.0),
    ("drop", {"keep": 0.9}, 0.828, 0.0435, 180.0),
)
ON_RLT = (
    ("rlt", {"tau": 0.05}, 0.857, 0.0174, 84.1),
    ("rlt", {"tau": 0.1}, 0.861, 0.0099, 51.3),
    ("rlt", {"tau": 0.2}, 0.854, 0.00772, 40.4),
    ("rlt", {"tau": 0.4}, 0.725, 0.00601, 32.3),
    ("tome", {"r": 40}, 0.836, 0.0349, 160.0),
    ("none", {}, 0.837, 0.0498, 200.0),
)


def entry(
    params: dict[str, Any], top1: float, gmacs: float, tokens: float, **more: Any
) -> dict[str, Any]:
    values = {"top1": top1, "gmacs": gmacs}
    return {"params": params, "values": values, "tokens": tokens, **more}


def trials() -> list[dict[str, Any]]:
    rows = [({"reducer": name, **knob}, *numbers) for name, knob, *numbers in ON_DENSE]
    rows += [({"reducer": name, **knob, **TRAINED}, *numbers) for name, knob, *numbers in ON_RLT]
    points = [entry(*row, trial=trial, state="complete") for trial, row in enumerate(rows)]
    params = {"reducer": "drop", "keep": 0.1}
    return [*points, {"trial": 23, "params": params, "values": {}, "state": "failed"}]


def controls_of(front: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A drop model for each trained point; without training also fewer frames and fewer pixels."""
    trained = {"finetune.reducer": "drop", "finetune.keep": 0.25}
    controls = []
    for point, top1 in zip(front, (0.452, 0.417, 0.529, 0.569), strict=True):
        gmacs, tokens, of = point["values"]["gmacs"], point["tokens"], {"of": point["trial"]}
        drop = {"reducer": "drop", "control": "drop", "keep": tokens / 200}
        frames = {"reducer": "none", "control": "frames", "clip.frames": 4}
        pixels = {"reducer": "none", "control": "resolution", "clip.size": 16}
        if "finetune.reducer" in point["params"]:
            controls.append(entry({**drop, **trained}, top1, gmacs, tokens, **of))
        else:
            controls.append(entry(drop, top1, gmacs, tokens, **of))
            controls.append(entry(frames, 0.448, 0.0070, 37.5, **of))
            controls.append(entry(pixels, 0.585, 0.0062, 32.0, **of))
    return controls


def sample() -> dict[str, Any]:
    """The JSON object of the contract for a finished study."""
    points = trials()
    front = [
        {**points[i], "stage_keys": [f"{i:02x}" * 32, f"{i + 100:02x}" * 32]}
        for i in front_of(points, OBJECTIVES)
    ]
    knee_at = knee(points, OBJECTIVES)
    assert knee_at is not None
    dense = points[0]
    pairs = [pair_of(p, OBJECTIVES) for p in points]
    return {
        "study": "demo",
        "study_key": "a1b2c3" + "0" * 58,
        "question": "which reduction keeps the accuracy of a small video model at half its cost?",
        "chance": 0.125,
        "split": {"clips": 400},
        "store": "paretoken-store",
        "workers": 1,
        "tracking": {"uri": "sqlite:///mlflow.db", "experiment": "paretoken", "run_id": "f00"},
        "objectives": [
            {"name": o.name, "direction": o.direction, "unit": o.unit, "reference": o.reference}
            for o in OBJECTIVES
        ],
        "hypervolume": hypervolume(pairs, (0.125, dense["values"]["gmacs"])),
        "trials": {"complete": 23, "failed": 1, "pruned": 0},
        "call": {
            "wall_s": 221.4,
            "busy_s": 172.7,
            "trials_reused": 0,
            "stages_run": 26,
            "stages_reused": 6,
        },
        "study_s": 172.7,
        "dense": {"trial": 0, "values": dense["values"], "tokens": 200.0},
        "knee": knee_at,
        "front": front,
        "controls": controls_of(front),
        "points": points,
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(sample(), tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"reducer": "none"}, "dense"),
        ({"reducer": "none", "finetune.reducer": "none"}, "dense"),
        ({"reducer": "tome", "r": 40}, "tome r=40"),
        ({"reducer": "drop", "keep": 0.2, "finetune.reducer": "none"}, "drop keep=0.20"),
        ({"reducer": "rlt", "tau": 0.08375}, "rlt tau=0.0838"),
        ({"reducer": "rlt", "tau": 0.1, **TRAINED}, "rlt tau=0.10 (trained with it)"),
        ({"reducer": "rlt", "tau": 0.2, **TRAINED}, "rlt tau=0.20 (trained at 0.10)"),
        ({"reducer": "tome", "r": 40, **TRAINED}, "tome r=40 (trained with rlt tau=0.10)"),
        ({"reducer": "none", **TRAINED}, "dense (trained with rlt tau=0.10)"),
        ({"reducer": "rlt+drop", "tau": 0.1, "keep": 0.5}, "rlt+drop tau=0.10 keep=0.50"),
        (
            {"reducer": "flux+drop", "flux.keep": 0.5, "drop.keep": 0.25},
            "flux+drop flux.keep=0.50 drop.keep=0.25",
        ),
        (
            {"reducer": "x", "a": 1, "b": 2, "finetune.reducer": "x"}
            | {"finetune.a": 1, "finetune.b": 3},
            "x a=1 b=2 (trained at b=3)",
        ),
        (
            {"reducer": "none", "pretrain.reducer": "rlt", "pretrain.tau": 0.1, **TRAINED},
            "dense (trained with rlt tau=0.10, pretrained with rlt tau=0.10)",
        ),
        ({"reducer": "tome", "r": 8, "evaluate.clip.frames": 8}, "tome r=8, 8 frames"),
        ({"reducer": "none", "control": "frames", "clip.frames": 4}, "4 frames"),
        ({"reducer": "none", "control": "resolution", "clip.size": 112}, "112 px"),
        ({"reducer": "drop", "control": "drop", "keep": 0.2}, "drop keep=0.20"),
    ],
)
def test_method_names_what_was_evaluated_and_how_it_was_trained(
    params: dict[str, Any], words: str
) -> None:
    assert method(params) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 m 00 s"), (192, "3 m 12 s"), (7499, "2 h 04 m")],
)
def test_duration_has_at_most_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_table_shows_front_dense_and_the_controls_of_the_knee() -> None:
    assert table(sample()).splitlines() == [
        "front of demo (24 trials, 1 failed, 3 m 41 s, 78 % busy)",
        "hypervolume 0.74 of [chance..100 %] x [0..dense]",
        "   top-1     GMACs   tokens   of dense   method",
        "  86.1 %   0.00990       51       20 %   rlt tau=0.10 (trained with it)",
        "  85.4 %   0.00772       40       16 %   rlt tau=0.20 (trained at 0.10)   <- knee",
        "  77.0 %   0.00667       36       13 %   rlt tau=0.30",
        "  72.5 %   0.00601       32       12 %   rlt tau=0.40 (trained at 0.10)",
        "  83.9 %   0.04980      200      100 %   dense (reference)",
        "  52.9 %   0.00772       40       16 %   "
        "drop keep=0.202 (trained control of the knee: -32.5 points)",
        "val split (400 clips: standard error 1.8 points at the knee), one seed: preliminary",
    ]


def test_a_control_of_the_pretraining_is_told_from_its_point() -> None:
    summary = sample()
    (knee,) = (point for point in summary["front"] if point["trial"] == summary["knee"])
    params = {**knee["params"], "pretrain.reducer": "drop", "pretrain.keep": 0.3}
    summary["controls"] = [{**knee, "of": knee["trial"], "params": params | {"control": "masking"}}]
    said = "rlt tau=0.20 (pretrained on random tokens, control of the knee: +0.0 points)"
    assert said in " ".join(table(summary).split())


def test_table_fits_in_100_columns_whatever_the_names() -> None:
    summary = sample()
    summary["study"] = "a_study_with_a_long_name_" * 3
    for point in summary["front"]:
        point["params"] |= {"reducer": "rlt+tome+drop", "first_knob": 0.123, "second_knob": 4567}
    lines = table(summary).splitlines()
    assert max(map(len, lines)) <= 100
    assert "<- knee" in " ".join(" ".join(lines).split())


def test_table_without_optional_keys_and_without_dense_says_what_it_can() -> None:
    summary = sample()
    for key in ("question", "chance", "split"):
        del summary[key]
    for point in [*summary["front"], *summary["controls"], *summary["points"]]:
        point.pop("tokens", None)
    summary["dense"] = None
    text = table(summary)
    assert "  85.4 %   0.00772        -          -   rlt tau=0.20" in text
    assert "reference" not in text
    assert "val split, one seed: preliminary" in text


def test_dense_on_the_front_has_one_line() -> None:
    summary = sample()
    summary["front"].append(summary["points"][0])
    assert table(summary).count("dense (reference)") == 1


def test_heading_of_a_call_that_ran_nothing_tells_what_the_study_took() -> None:
    summary = sample()
    summary["call"] |= {"wall_s": 0, "busy_s": 0}
    assert "(24 trials, 1 failed, 2 m 53 s of stages)" in table(summary)


def test_markdown_has_the_same_rows_as_the_table() -> None:
    lines = markdown(sample()).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + 6
    assert "| 85.4 % | 0.00772 | 40 | 16 % | rlt tau=0.20 (trained at 0.10)   &lt;- knee |" in rows
    assert lines[0] == sample()["question"]


def test_json_file_is_the_summary(files: dict[str, Path]) -> None:
    assert json.loads(files["front.json"].read_text()) == sample()


def test_csv_has_a_line_for_each_front_point_from_cheap_to_dear(files: dict[str, Path]) -> None:
    with files["front.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    front = sample()["front"]
    assert [int(row["trial"]) for row in rows] == [point["trial"] for point in front]
    assert [float(row["gmacs"]) for row in rows] == [p["values"]["gmacs"] for p in front]
    assert [row["is_knee"] for row in rows].count("True") == 1
    assert [row["params.finetune.tau"] for row in rows] == ["0.1", "", "0.1", "0.1"]
    assert float(rows[0]["gmacs_share"]) == pytest.approx(0.00601 / 0.0498)
    assert rows[0]["stage_keys"].split() == front[0]["stage_keys"]


def test_png_is_1400_by_900(files: dict[str, Path]) -> None:
    content = files["front.png"].read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1400, 900)


def test_page_loads_nothing_from_elsewhere(files: dict[str, Path]) -> None:
    page = files["front.html"].read_text()
    assert "plotly.js v" in page
    for outside in ('src="http', "src='http", "<script src", "<link"):
        assert outside not in page


def test_page_has_a_row_for_every_trial_and_control(files: dict[str, Path]) -> None:
    page = files["front.html"].read_text()
    assert page.count('<tr class="') == 24 + 6
    assert page.count("<td>knee</td>") == 1
    assert "<td>failed</td><td>drop keep=0.10</td>" in page


def test_pins_are_not_in_the_way_of_the_points_below_them(files: dict[str, Path]) -> None:
    page = files["front.html"].read_text()
    figure = page[page.rindex("Plotly.newPlot(") :]
    traces, _ = json.JSONDecoder().raw_decode(figure[figure.index("[") :])
    for trace in traces:  # what has no row in the table cannot be clicked
        assert ("customdata" in trace) == (trace.get("hoverinfo") != "skip")
    assert "customdata" not in traces[-1]


def test_words_of_a_user_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x_1$')</script> a|b & \"c\""
    summary = sample() | {"study": evil, "question": evil}
    for point in [*summary["points"], *summary["front"]]:
        point["params"] |= {"reducer": evil, "note": evil}
    page = write(summary, tmp_path)["front.html"].read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "<script>" not in markdown(summary)
    assert all(line.count(" | ") == 4 for line in markdown(summary).splitlines() if line[:1] == "|")


@pytest.mark.parametrize("trials", [[0], [0, 23], [0, 12]])
def test_small_studies_have_a_report_too(tmp_path: Path, trials: list[int]) -> None:
    summary = sample()
    points = [point for point in summary["points"] if point["trial"] in trials]
    front = [points[i] | {"stage_keys": []} for i in front_of(points, OBJECTIVES)]
    summary |= {"points": points, "front": front, "controls": [], "knee": front[0]["trial"]}
    assert "<- knee" in table(summary)
    assert all(path.stat().st_size > 0 for path in write(summary, tmp_path).values())


def test_study_without_dense_has_a_report_too(tmp_path: Path) -> None:
    summary = sample() | {"dense": None}
    del summary["points"][0]
    assert write(summary, tmp_path)["front.png"].stat().st_size > 0


def test_writing_again_replaces_the_files_and_leaves_nothing_beside_them(tmp_path: Path) -> None:
    write(sample(), tmp_path)
    write(sample() | {"study": "other"}, tmp_path)
    assert json.loads((tmp_path / "front.json").read_text())["study"] == "other"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["front.csv", "front.html", "front.json", "front.png"]


def test_importing_the_report_does_not_import_what_draws() -> None:
    code = "import sys, orchestrator.report; print({'plotly', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
