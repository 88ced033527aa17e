"""Videos as they come become a data set; a run that is killed goes on and repeats nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Ended, command, environment, paretoken

from orchestrator import examiners, failures, ingest, inventory, journal
from orchestrator.__main__ import main
from orchestrator.inventory import BAD_COLUMNS, COLUMNS
from orchestrator.sources import Listing, Source
from workloads import datasets
from workloads.barcodes import barcode, numbers_of
from workloads.datasets import Clip, synthetic
from workloads.datasets.splits import SIDES
from workloads.examine import Job, Verdict

NUM_CLIPS = 60
BAD = {"run/text.mp4": b"no video", "jump/empty.mp4": b""}
OPTIONS = ("--max-bad", "0.1", "--advice-seconds", "0", "--json")


@dataclass(frozen=True)
class Done:
    """A data set that was made by two runs, the first of which was killed."""

    src: Path
    out: Path
    finished_before: Counter[str]
    """Lines of the journal when the second run began, by key."""
    ended: Ended


def clip(first: int) -> bytes:
    return synthetic.encode(np.stack([barcode(first + i) for i in range(8)]), fps=25)


def lines(out: Path) -> Counter[str]:
    return Counter(key for key, _ in journal.read(out / "journal"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    root = tmp_path_factory.mktemp("ingest")
    src, out = root / "src", root / "out"
    for number in range(NUM_CLIPS):
        path = src / ("run", "jump")[number % 2] / f"{number:02d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip(number))
    for name, content in BAD.items():
        (src / name).write_bytes(content)
    shutil.copy(src / "run" / "00.mp4", src / "jump" / "copy of 00.mp4")
    (src / "notes.txt").write_text("not a video")
    kill(src, out)
    before = lines(out)
    return Done(src, out, before, paretoken("ingest", src, "--out", out, *OPTIONS))


def kill(src: Path, out: Path) -> None:
    """Begin, and kill the driver as soon as the first verdicts are there."""
    begun = subprocess.Popen(
        command("ingest", src, "--out", out, *OPTIONS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
    )
    with begun:
        while begun.poll() is None and not any((out / "journal").glob("*.jsonl")):
            time.sleep(0.01)
        begun.send_signal(signal.SIGKILL)
    assert begun.returncode == -signal.SIGKILL


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_after_kill_9_no_finished_video_is_examined_again(done: Done) -> None:
    assert 0 < len(done.finished_before) < NUM_CLIPS
    after = lines(done.out)
    assert len(after) == NUM_CLIPS + len(BAD) + 1
    assert {after[key] for key in done.finished_before} == {1}
    assert set(after.values()) == {1}
    assert "videos are done" in done.ended.err


def test_every_video_is_in_one_of_the_two_lists(done: Done) -> None:
    answer = done.ended.answer
    assert done.ended.code == 0
    assert answer.keys() >= {"accepted", "normalised", "quarantined", "manifest", "seconds"}
    assert (answer["accepted"], answer["normalised"]) == (NUM_CLIPS + 1, 0)
    assert (answer["quarantined"], answer["duplicates"]) == (2, 0)
    made, bad = rows(Path(answer["manifest"])), rows(done.out / "quarantine.csv")
    assert tuple(made[0]) == COLUMNS
    assert tuple(bad[0]) == BAD_COLUMNS
    assert {row["path"]: row["reason"].partition(":")[0] for row in bad} == {
        "jump/empty.mp4": "empty file",
        "run/text.mp4": "cannot be decoded",
    }
    assert {row["source"] for row in made} | {row["path"] for row in bad} == {
        path.relative_to(done.src).as_posix() for path in done.src.rglob("*.mp4")
    }
    assert pq.read_table(done.out / "manifest.parquet").column_names == list(COLUMNS)
    assert pq.read_table(done.out / "manifest.parquet").num_rows == len(made)


def test_the_manifest_is_data_of_a_study(done: Done) -> None:
    manifest = datasets.load(done.out / "manifest.csv", trains=True)
    assert manifest.classes == ("jump", "run")
    assert len(manifest.clips) == NUM_CLIPS + 1
    copies = [one for one in manifest.clips if one.path.endswith("00.mp4")]
    assert len({one.split for one in copies}) == len({one.group for one in copies}) == 1
    from workloads import readers

    first = next(one for one in manifest.clips if one.path == "videos/run/02.mp4")
    assert numbers_of(readers.read(manifest.root / first.path)) == list(range(2, 10))
    assert datasets.load(done.out / "videos", trains=True).classes == manifest.classes


def test_for_people_it_says_what_became_of_the_videos(done: Done) -> None:
    said = done.ended.err
    assert f"accepted     {NUM_CLIPS + 1:>6}   as they are, linked" in said
    assert "quarantined       2   1 empty file, 1 cannot be decoded: " in said
    assert "passed over       1   not named like videos: 1 .txt" in said
    assert f"paretoken run rlt_tau --data {done.out / 'manifest.csv'}" in said


def again(done: Done, src: Path, out: Path, *options: str) -> int:
    return main(["ingest", str(src), "--out", str(out), *options])


def test_what_is_whole_needs_no_ray_and_may_be_moved(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(done.out, moved, symlinks=True)
    before = (moved / "manifest.csv").read_bytes()
    (moved / "manifest.csv").unlink()
    (moved / "videos" / "run" / ".123.part.mp4").write_bytes(b"half")
    begun = time.monotonic()
    assert again(done, done.src, moved, *OPTIONS) == 0
    assert time.monotonic() - begun < 3
    assert (moved / "manifest.csv").read_bytes() == before
    assert not [path for path in (moved / "videos").rglob(".*")]
    assert "ray" not in capsys.readouterr().err.split()


def test_beyond_the_limit_the_exit_code_is_1_and_the_tables_are_there(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(done.out, moved, symlinks=True)
    assert again(done, done.src, moved, "--max-bad", "0.01", *OPTIONS[2:]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["quarantined"] == 2
    assert "too many videos cannot be used (3.2 %, limit 1.0 %, --max-bad)" in said.err


def test_copies_on_two_sides_are_quarantined_from_one_and_do_not_count_as_bad(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    shutil.copytree(done.src, src)
    (src / "all.csv").write_text(
        'path,label,split\nrun/00.mp4,a/b,train\njump/copy of 00.mp4,"a, b",test\n'
    )
    options = ingest.Options(src=src / "all.csv", out=out)
    found = ingest.listing(options.src)
    (out / "journal").mkdir(parents=True)
    for source in found.sources:  # as examined before
        same = Verdict(action="accepted", path=source.link, decoder="decord", pictures="x")
        (out / "videos" / source.link).parent.mkdir(parents=True, exist_ok=True)
        (out / "videos" / source.link).symlink_to(source.file)
        journal.append(out / "journal", ingest.key_for(options, source), same)
    ingest.write_claim(options)
    assert again(done, src / "all.csv", out, "--advice-seconds", "1", "--json") == 0
    said = capsys.readouterr()
    answer = json.loads(said.out.splitlines()[-1])
    assert (answer["accepted"], answer["quarantined"], answer["duplicates"]) == (1, 1, 1)
    assert "tokens that RLT keeps" in said.err
    assert (out / "advice.png").is_file()
    (kept,) = rows(out / "manifest.csv")
    assert (kept["label"], kept["split"]) == ("a, b", "test")
    (left,) = rows(out / "quarantine.csv")
    assert (left["label"], left["path"]) == ("a/b", "run/00.mp4")
    assert left["reason"] == "shows the same as jump/copy of 00.mp4, which is in test"
    assert not (out / "videos" / "run" / "00.mp4").is_symlink()
    # Nothing is examined again; and what left comes back when it is alone.
    assert again(done, src / "all.csv", out, "--advice-seconds", "0") == 0
    assert "ray" not in capsys.readouterr().err.split()
    (src / "all.csv").write_text("path,label,split\nrun/00.mp4,a/b,train\n")
    assert again(done, src / "all.csv", out, "--advice-seconds", "0") == 0
    assert "ray" not in capsys.readouterr().err.split()
    assert [row["path"] for row in rows(out / "manifest.csv")] == ["videos/run/00.mp4"]
    assert (out / "videos" / "run" / "00.mp4").is_symlink()


def test_tables_are_utf8_whatever_the_names_are(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in (b"caf\xe9.mp4", b"th\xe9.mp4", b"new\nline.mp4")]
    clips = [Clip(name, "a", split) for name, split in zip(names, SIDES, strict=True)]
    sources = tuple(
        Source(file=f"/{c.path}", clip=c, link=f"{i}.mp4", copy=f"{i}.mp4", size=1, mtime_ns=1)
        for i, c in enumerate(clips)
    )
    same = Verdict(action="accepted", path="0.mp4", decoder="decord", pictures="x")
    bad = Verdict(action="quarantined", reason="empty file")
    verdicts = dict(zip(names, (same, same, bad), strict=True))
    inventory.write(inventory.take(tmp_path, Listing(sources), verdicts))
    assert [row["source"] for row in rows(tmp_path / "manifest.csv")] == ["th%E9.mp4"]
    assert {row["path"]: row["reason"] for row in rows(tmp_path / "quarantine.csv")} == {
        "caf%E9.mp4": "shows the same as th%E9.mp4, which is in val",
        "new%0Aline.mp4": "empty file",
    }


def test_what_is_said_is_utf8_whatever_the_names_are(tmp_path: Path) -> None:
    options = ingest.Options(src=tmp_path, out=tmp_path / os.fsdecode(b"out \xff"))
    bad = [{"path": "x", "reason": "empty file"}]
    made = inventory.Inventory(options.out, rows=[], bad=bad, twins=0)
    found = Listing((), others=Counter({".%FF": 1}), unlisted=("a.mp4", "b.mp4"))
    said = "\n".join(ingest.told(options, made, found, 1.0))
    assert "passed over       2   in none of the lists, such as a.mp4" in said
    assert f"--data '{tmp_path}/out %FF/manifest.csv'" in said
    _, answer = ingest.answer(options, made, 1.0)
    assert answer["quarantine"] == f"{tmp_path}/out %FF/quarantine.csv"
    assert (said + answer["manifest"]).encode()


@pytest.mark.parametrize(
    ("out", "complaint"),
    [
        ("dangling", "dangling: is a link to nothing"),
        ("dangling/new", "dangling/new: is a link to nothing"),
        ("l" * 300, "file name too long"),
        ("new/" + "l" * 300, "file name too long"),
        ("file/new", "not a directory"),
        (os.fsdecode(b"out \xff"), "out \\xff' is not UTF-8: rename it, or name a link"),
        ("[]", "its ingest.json is not one that paretoken wrote"),
        ("{", "its ingest.json is not one that paretoken wrote"),
        ("{}", "its ingest.json is not one that paretoken wrote"),
    ],
)
def test_places_that_cannot_hold_a_data_set_are_refused(
    tmp_path: Path, out: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in" / "run").mkdir(parents=True)
    (tmp_path / "in" / "run" / "x.mp4").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for text in ("[]", "{", "{}"):
        (tmp_path / text).mkdir()
        (tmp_path / text / "ingest.json").write_text(text)
    assert main(["ingest", str(tmp_path / "in"), "--out", str(tmp_path / out)]) == 2
    assert complaint in capsys.readouterr().err


def test_ways_to_what_is_known_are_listed_and_are_not_bad(tmp_path: Path) -> None:
    verdict = Verdict(action="accepted", path="a.mp4", decoder="decord", pictures="x")
    source = Source(file="/a", clip=Clip("a.mp4", "a"), link="a", copy="a", size=1, mtime_ns=1)
    closed, twice = (("b", "permission denied"),), (("c", "reached already, as b"),)
    made = inventory.take(tmp_path, Listing((source,), closed, twice), {"a.mp4": verdict})
    assert [row["path"] for row in made.bad] == ["b", "c"]
    assert made.share_bad == 1 / 2


@pytest.mark.parametrize(
    ("src", "out", "complaint"),
    [
        ("in", "in", "holds SRC"),
        ("in/run", "in", "holds SRC"),
        ("in", "in/new", "lies in SRC"),
        ("in", "full", "holds other files"),
        ("in", "in/run/x.mp4", "lies in SRC"),
        ("in", "file", "is no folder"),
        ("in", "other", "holds the videos of"),
        ("empty", "new", "no videos"),
        ("gone", "new", "does not exist"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    tmp_path: Path, src: str, out: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("in/run", "full", "other", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("in/run/x.mp4", "full/y", "file"):
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "other" / "ingest.json").write_text('{"source": "/elsewhere"}')
    before = sorted(tmp_path.rglob("*"))
    assert main(["ingest", str(tmp_path / src), "--out", str(tmp_path / out)]) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "options", [("--quality", "52"), ("--max-bad", "2"), ("--max-bad", "x"), ("--short-side", "0")]
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_a_decoder_that_hangs_or_dies_twice_costs_only_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_decoder.py").write_text(
        "import json, os, time\n"
        "from workloads import isolation\n"
        "def answer(question, beat):\n"
        "    os.abort() if question == 'die' else time.sleep(60)\n"
        "isolation.serve(answer)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    hung = examiners.verdict_on("hang", 0.5, "bad_decoder")
    assert (hung.action, hung.reason) == (
        "quarantined",
        "its decoder gave no sign of life for 0.5 s, 2 times",
    )
    died = examiners.verdict_on("die", 0.5, "bad_decoder")
    assert died.reason == "its decoder died of signal 6, 2 times"
    assert died.passing


def test_a_large_file_may_take_longer(tmp_path: Path) -> None:
    with (tmp_path / "large.mp4").open("wb") as file:
        file.truncate(2 * 10**9)
    job = json.dumps({"source": str(tmp_path / "large.mp4")})
    assert examiners._more_s(job) == 100
    assert examiners._more_s('{"source": "gone"}') == 0


def test_a_verdict_for_a_passing_reason_does_not_hold(done: Done, tmp_path: Path) -> None:
    """A file that was gone for a moment, a decoder that hung, a disk without permission."""
    verdict = Verdict(action="quarantined", reason="permission denied")
    assert ingest._holds(tmp_path, verdict, "/a")
    assert not ingest._holds(tmp_path, replace(verdict, passing=True), "/a")


def test_a_verdict_holds_for_the_file_that_lies_there(tmp_path: Path) -> None:
    linked = Verdict(action="accepted", path="a.mp4")
    assert not ingest._holds(tmp_path, linked, "/a")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").symlink_to("/a")
    assert ingest._holds(tmp_path, linked, "/a")
    assert not ingest._holds(tmp_path, linked, "/b")
    job = Job(source="/a", folder="", link="a.mp4", copy="a.mp4")
    names = {ingest._told_apart(job, key).copy for key in ("1" * 64, "2" * 64)}
    assert names == {"a.11111111.mp4", "a.22222222.mp4"}


def test_what_the_disk_refuses_is_no_verdict_and_may_be_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full_disk.py").write_text(
        "import errno, os\n"
        "from workloads import examine, isolation\n"
        "def full(job, beat):\n"
        "    number = getattr(errno, job.link)\n"
        "    raise OSError(number, os.strerror(number), '/out/x.mp4')\n"
        "examine.examine = full\n"
        "isolation.serve(examine.answer)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = Job(source="/src/x.mp4", folder="/out", link="ENOSPC", copy="x.mp4")
    with pytest.raises(OSError, match=r"No space left on device: '/out/x\.mp4'"):
        examiners.verdict_on(json.dumps(asdict(job)), 60, "full_disk")
    job = replace(job, link="EFBIG")  # of this video alone
    verdict = examiners.verdict_on(json.dumps(asdict(job)), 60, "full_disk")
    assert verdict.action == "quarantined"
    assert "File too large" in verdict.reason
    code, text = failures.explain(ingest.Stopped("/out: No space left on device"), ["ingest", "a"])
    assert code == 1
    assert text.endswith("nothing is lost. Continue with: paretoken ingest a")


def test_a_torn_line_of_the_journal_is_passed_over(tmp_path: Path) -> None:
    verdict = Verdict(action="quarantined", reason="empty file")
    line = journal.append(tmp_path, "key", verdict)
    (tmp_path / "9-torn.jsonl").write_text(f"{line}\n{line[:20]}\n{line}")
    assert list(journal.read(tmp_path)) == [("key", verdict)] * 2


def test_a_second_run_waits_for_the_heirs_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "WAIT_S", 0.5)
    begun = time.monotonic()
    with journal.busy(tmp_path):
        journal.wait(tmp_path)
    assert time.monotonic() - begun >= 0.5
    begun = time.monotonic()
    journal.wait(tmp_path)
    assert time.monotonic() - begun < 0.4
    assert os.listdir(tmp_path) == [journal.BUSY]
