"""Every danger has its verdict, and what stays in the data set shows PyAV's sequential frames."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import shared
from barcodes import barcode, numbers_of, write
from test_readers import only_sound, trimmed, turn

from workloads import examine, normalise, probe, readers
from workloads.examine import Job, Verdict
from workloads.normalise import Target

# What re-encoding may change, in grey levels on average; a frame that is another differs by more.
TOLERANCE = 4.0

ACCEPTED = "accepted"
NORMALISED = "normalised"
QUARANTINED = "quarantined"

# The last row might be normalised; decord is proved exact on it.
BAD = {
    **dict.fromkeys(("faststart_ok.mp4", "nframes0.mkv", "vp9.webm", "mpeg4.avi"), ACCEPTED),
    **dict.fromkeys(("odd_127x97.mp4", "vfr.mp4", "three_frames.mp4", "one_frame.mp4"), ACCEPTED),
    **dict.fromkeys(("opengop_b3.mp4", "mpegts.ts", "trim_copy_editlist.mp4"), NORMALISED),
    **dict.fromkeys(("reschange.ts", "av1.mkv", "h264_10bit.mp4"), NORMALISED),
    **dict.fromkeys(("zero_byte.mp4", "text.mp4", "corrupt_header.mp4"), QUARANTINED),
    **dict.fromkeys(("corrupt_mid_bytes.mp4", "corrupt_zero_run.mp4"), QUARANTINED),
    **dict.fromkeys(("trunc50_faststart.mp4", "trunc95_faststart.mp4"), QUARANTINED),
    **dict.fromkeys(("trunc50_moov_end.mp4", "audio_only.mp4"), QUARANTINED),
    **dict.fromkeys(("rotate90.mp4", "hevc.mp4", "yuv444.mp4", "start_offset.mp4"), ACCEPTED),
}
REASONS = {
    "one_frame.mp4": "short: 1 frame",
    "vfr.mp4": "variable rate",
    "opengop_b3.mp4": "open GOP",
    "mpegts.ts": "transport stream",
    "trim_copy_editlist.mp4": "edit list hides 15 frames",
    "reschange.ts": "transport stream; resolution changes at frame 45: scaled to 224x224",
    "av1.mkv": "decord cannot read it",
    "h264_10bit.mp4": "decord gives another frame 0",
    "zero_byte.mp4": "empty file",
    "audio_only.mp4": "no video stream",
    "corrupt_header.mp4": "no video stream",
}


def job(source: Path, folder: Path, **changes: object) -> Job:
    copy = source.name if source.suffix == ".mp4" else f"{source.name}.mp4"
    plain = Job(source=str(source), folder=str(folder), link=source.name, copy=copy)
    return replace(plain, **changes)  # type: ignore[arg-type]


def examined(source: Path, folder: Path, **changes: object) -> Verdict:
    return examine.examine(job(source, folder, **changes))


def truth(path: Path) -> list[np.ndarray]:
    """Return every frame that PyAV decodes, upright, one after another, whatever its size."""
    import av

    with av.open(str(path)) as container:
        stream = max(container.streams.video, key=lambda one: one.width * one.height)
        return [
            np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
            for frame in container.decode(stream)
        ]


def check(verdict: Verdict, source: Path, folder: Path) -> None:
    """Compare what the data set holds with the truth, in order and at random."""
    frames = truth(source)
    made = folder / verdict.path
    assert verdict.frames == len(frames)
    assert verdict.sha256 == hashlib.sha256(made.read_bytes()).hexdigest()
    is_linked = verdict.action == ACCEPTED
    assert made.is_symlink() == is_linked
    true_THWC = np.stack(frames) if is_linked else readers.read(made, decoder="pyav")
    assert true_THWC.shape[:3] == (verdict.frames, verdict.height, verdict.width)
    assert np.array_equal(readers.read(made), true_THWC)
    some = np.random.default_rng(0).permutation(len(frames))[:12].tolist()
    assert np.array_equal(readers.read(made, some), true_THWC[some])
    if not is_linked:
        check_near(true_THWC, frames)


def check_near(got_THWC: np.ndarray, frames: list[np.ndarray]) -> None:
    for got_HWC, true_HWC in zip(got_THWC, frames, strict=True):
        if got_HWC.shape == true_HWC.shape:  # else it is scaled, and looked at by hand
            difference = np.abs(got_HWC.astype(int) - true_HWC).mean()
            assert difference < TOLERANCE


@pytest.mark.parametrize("path", shared.videos("bad"), ids=lambda path: path.name)
def test_dangerous_files_have_their_verdicts(path: Path, tmp_path: Path) -> None:
    verdict = examined(path, tmp_path)
    assert verdict.action == BAD[path.name]
    if path.name in REASONS:
        assert verdict.reason == REASONS[path.name]
    if verdict.action == QUARANTINED:
        assert verdict.reason
        assert not any(tmp_path.iterdir())
    else:
        check(verdict, path, tmp_path)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "share", "reason"),
    [
        ("cut.mkv", "libx264", "yuv420p", 0.5, r"breaks off: \d+ of \d+ bytes are there"),
        ("cut.mkv", "libx264", "yuv420p", 0.95, r"breaks off: \d+ of \d+ bytes are there"),
        ("cut.avi", "mjpeg", "yuvj420p", 0.5, r"packet \d+ is damaged"),
    ],
)
def test_containers_that_end_too_soon_without_a_word_are_met(
    name: str, codec: str, pixels: str, share: float, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, frames(60, 96, 128), codec, pixels)
    assert examined(path, tmp_path / "whole").action == ACCEPTED
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    verdict = examined(path, tmp_path / "cut")
    assert verdict.action == QUARANTINED
    assert re.fullmatch(reason, verdict.reason)
    with pytest.raises(readers.UnreadableVideo):
        readers.counted(path, 600)
    saved = examined(path, tmp_path / "cut", salvage=True)
    assert (saved.action, saved.frames > 10) == (NORMALISED, True)


def test_a_last_picture_that_stays_on_is_no_missing_end(tmp_path: Path) -> None:
    path = stamped(tmp_path / "slides.mkv", lambda n: 40 * n + 3000 * (n == 39))
    verdict = examined(path, tmp_path / "out")
    assert (verdict.action, verdict.frames, verdict.reason) == (ACCEPTED, 40, "")


@pytest.mark.parametrize("salvage", [False, True])
def test_a_list_of_other_files_is_no_video(salvage: bool, tmp_path: Path) -> None:
    plain(tmp_path / "a.mp4")
    path = tmp_path / "list.mp4"
    for name in ("a.mp4", "gone.mp4"):
        path.write_text(f"ffconcat version 1.0\nfile {name}\n")
        verdict = examined(path, tmp_path / "out", salvage=salvage)
        assert (verdict.action, verdict.passing) == (QUARANTINED, False)
        with pytest.raises(readers.UnreadableVideo) as caught:
            readers.counted(path, 600)
        assert not caught.value.passing


BROKEN = ("trunc50_faststart.mp4", "trunc95_faststart.mp4", "corrupt_mid_bytes.mp4")


@pytest.mark.parametrize(
    "path", [path for path in shared.videos("bad") if path.name in BROKEN], ids=lambda p: p.name
)
def test_the_head_of_a_broken_video_may_be_salvaged(path: Path, tmp_path: Path) -> None:
    """All three are damaged copies of one file."""
    verdict = examined(path, tmp_path, salvage=True)
    whole = truth(path.with_name("faststart_ok.mp4"))
    assert verdict.action == NORMALISED
    assert 10 < verdict.frames < len(whole)
    assert verdict.reason.startswith(f"cut after {verdict.frames} frames: ")
    check_near(readers.read(tmp_path / verdict.path), whole[: verdict.frames])


@pytest.mark.parametrize("name", ["zero_byte.mp4", "trunc50_moov_end.mp4", "audio_only.mp4"])
def test_what_has_no_head_cannot_be_salvaged(name: str, tmp_path: Path) -> None:
    for path in shared.videos("bad"):
        if path.name == name:
            assert examined(path, tmp_path, salvage=True).action == QUARANTINED


@pytest.mark.slow
@pytest.mark.parametrize("path", shared.videos("real"), ids=lambda path: path.name)
def test_real_clips_are_all_usable(path: Path, tmp_path: Path) -> None:
    verdict = examined(path, tmp_path)
    assert verdict.action in (ACCEPTED, NORMALISED)
    check(verdict, path, tmp_path)


def frames(number: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [barcode(n, height, width) for n in range(number)]


def plain(path: Path) -> Path:
    return write(path, frames(40), g="12", bf="2")


def open_gop(path: Path, height: int = 64, width: int = 96) -> Path:
    params = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
    made = frames(60, height, width)
    return write(path, made, pixels="yuv444p", **{"x264-params": params})


def transport_stream(path: Path) -> Path:
    """A misnamed one: it ends in .mp4."""
    write(path.with_suffix(".ts"), frames(40), g="12", bf="2").rename(path)
    return path


def edit_list(path: Path) -> Path:
    return trimmed(plain(path.with_name("whole.mp4")), path, seconds=0.8)


def lying(path: Path) -> Path:
    write(path, [np.rot90(barcode(n, 96, 128), -1).copy() for n in range(6)])
    turn(path)
    return path


def changing(path: Path) -> Path:
    parts = [
        write(path.with_name(f"{i}.ts"), frames(20, *size), g="10").read_bytes()
        for i, size in enumerate(((64, 96), (96, 144)))
    ]
    path.write_bytes(b"".join(parts))
    return path


def coloured(number: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Numbered frames below coloured tiles: each decoder rounds 10 bits to 8 its own way."""
    made = frames(number, height, width)
    for i, frame_HWC in enumerate(made):
        tiles_HWC = np.random.default_rng(i).integers(0, 255, (height // 8, width // 8 + 1, 3))
        tiled_HWC = np.kron(tiles_HWC, np.ones((8, 8, 1), int))
        frame_HWC[: height // 4] = tiled_HWC[: height // 4, :width]
    return made


def deep(path: Path) -> Path:
    return write(path, coloured(10), pixels="yuv420p10le")


def refreshed(path: Path) -> Path:
    """No key frame but the first: pictures are renewed bit by bit, and flagged all the same."""
    params = {"x264-params": "intra-refresh=1:keyint=30:bframes=0"}
    return write(path, [barcode(n % 256, 64, 96) for n in range(300)], **params)


def stamped(path: Path, time_of: Callable[[int], int]) -> Path:
    """Forty frames at other times, milliseconds."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width = 64, 96
        made = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames(40)]
        packets = [packet for frame in (*made, None) for packet in stream.encode(frame)]
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = time_of(number)
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    return path


def halting(path: Path) -> Path:
    """One frame has the time of the frame before it."""
    made = stamped(path.with_suffix(".mkv"), lambda n: 40 * (n - (n == 17)))
    return made.rename(path)


def narrow(path: Path) -> Path:
    return write(path, frames(6, 48, 48))


def with_cover(path: Path) -> Path:
    """A small video with a large picture beside it, as music players keep one."""
    import av
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 256, 256, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(barcode(255, 256, 256), format="rgb24")
        container.mux(cover.encode(picture.reformat(format="yuvj420p")))
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
            container.mux(stream.encode(frame))
        for one in (stream, cover):
            container.mux(one.encode())
    return path


MADE: dict[Callable[[Path], Path], tuple[str, str, int]] = {
    plain: (ACCEPTED, "", 40),
    open_gop: (NORMALISED, "open GOP", 60),
    transport_stream: (NORMALISED, "transport stream", 40),
    changing: (NORMALISED, "transport stream; resolution changes at frame 20: scaled to 96x64", 40),
    deep: (NORMALISED, "decord gives another frame 0", 10),
    lying: (ACCEPTED, "", 6),
    halting: (NORMALISED, "time stamps repeat; variable rate", 40),
    refreshed: (NORMALISED, "key frames that are none", 300),
    narrow: (ACCEPTED, "", 6),
    with_cover: (ACCEPTED, "", 10),
}


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_each_danger_is_met_and_no_frame_is_lost(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = make(tmp_path / "video.mp4")
    verdict = examined(source, tmp_path / "out")
    action, reason, count = MADE[make]
    assert (verdict.action, verdict.reason, verdict.frames) == (action, reason, count)
    numbers = numbers_of(readers.read(tmp_path / "out" / verdict.path))
    assert numbers == (2 * list(range(20)) if make is changing else [n % 256 for n in range(count)])
    assert verdict.decoder == ("pyav" if make is narrow else "decord")
    assert verdict.fps == 25


def test_what_an_edit_list_hides_stays_hidden(tmp_path: Path) -> None:
    source = edit_list(tmp_path / "video.mp4")
    shown = numbers_of(np.stack(truth(source)))
    verdict = examined(source, tmp_path / "out")
    assert verdict.action == NORMALISED
    assert verdict.reason.startswith("edit list hides")
    made = tmp_path / "out" / verdict.path
    assert numbers_of(readers.read(made)) == shown
    assert b"elst" not in made.read_bytes()


def test_a_rewritten_video_is_the_same_bytes_again_and_needs_no_rewriting(tmp_path: Path) -> None:
    source = open_gop(tmp_path / "video.mp4")
    first, second = (examined(source, tmp_path / name) for name in ("one", "two"))
    assert first == second
    made = tmp_path / "one" / first.path
    again = examined(made, tmp_path / "three")
    assert (again.action, again.sha256) == (ACCEPTED, first.sha256)


def test_a_rewritten_video_is_as_small_and_as_good_as_asked(tmp_path: Path) -> None:
    source = open_gop(tmp_path / "video.mp4", 98, 131)
    small = examined(source, tmp_path / "small", target=Target(short_side=48))
    assert (small.height, small.width) == (48, 64)
    assert numbers_of(readers.read(tmp_path / "small" / small.path)) == list(range(60))
    even = examined(source, tmp_path / "even")
    assert (even.height, even.width) == (98, 130)
    rough = examined(source, tmp_path / "rough", target=Target(quality=45))
    sizes = [(tmp_path / n / "video.mp4").stat().st_size for n in ("even", "rough")]
    assert sizes[0] > sizes[1]
    assert rough.pictures == even.pictures


def test_the_same_pictures_are_known_in_another_container(tmp_path: Path) -> None:
    source = plain(tmp_path / "video.mp4")
    other = trimmed(source, tmp_path / "other.mkv", seconds=0.0)
    first, second = (examined(path, tmp_path / "out") for path in (source, other))
    assert first.pictures == second.pictures
    assert first.sha256 != second.sha256


def playlist(path: Path) -> None:
    plain(path.with_name("secret.mp4"))
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")


def damaged(path: Path) -> None:
    content = bytearray(write(path.with_suffix(".avi"), frames(60), codec="mpeg4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(content)


UNUSABLE: dict[Callable[[Path], object], str] = {
    lambda path: path.write_bytes(b""): "empty file",
    lambda path: path.write_text("this is no video\n" * 50): "cannot be decoded: Invalid data",
    lambda path: path.write_bytes(plain(path).read_bytes()[:2000]): "cannot be decoded: ",
    lambda path: path.mkdir(): "not a file",
    lambda path: os.mkfifo(path): "not a file",
    lambda path: path.symlink_to("elsewhere"): "a link to no file",
    lambda path: path.symlink_to(path.name): "a link to no file",
    lambda path: None: "no such file",
    only_sound: "no video stream",
    playlist: "a list of other files (concat), no video",
    damaged: "frame ",
}


@pytest.mark.parametrize("make", UNUSABLE, ids=list(UNUSABLE.values()))
def test_what_is_no_whole_video_is_quarantined(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / "video.mp4")
    verdict = examined(tmp_path / "video.mp4", tmp_path / "out")
    assert verdict.action == QUARANTINED
    assert verdict.reason.startswith(UNUSABLE[make])
    assert verdict.path == ""


def test_a_huge_frame_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    verdict = examined(plain(tmp_path / "video.mp4"), tmp_path / "out", most_pixels=6000)
    assert verdict.reason == ("96 x 64 pixels a frame, the limit is 0.006 million (--max-pixels)")


def test_a_name_that_is_no_utf8_is_examined_like_any_other(tmp_path: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    plain(tmp_path / "video.mp4").rename(source)
    verdict = examined(source, tmp_path / "out", link="caf%E9.mp4", copy="caf%E9.mp4")
    assert (verdict.action, verdict.decoder, verdict.path) == (ACCEPTED, "decord", "caf%E9.mp4")
    assert numbers_of(readers.read(tmp_path / "out" / verdict.path)) == list(range(40))
    assert numbers_of(readers.read(source)) == list(range(40))


def test_a_file_that_may_not_be_read_is_quarantined(tmp_path: Path) -> None:
    source = plain(tmp_path / "video.mp4")
    source.chmod(0)
    as_nobody = os.geteuid() == 0
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    if as_nobody:
        os.seteuid(65534)
    try:
        verdict = examined(source, tmp_path / "out")
    finally:
        if as_nobody:
            os.seteuid(0)
    assert verdict.reason == "permission denied"


def test_a_full_disk_is_no_fault_of_the_video(tmp_path: Path) -> None:
    film = probe.probe(plain(tmp_path / "video.mp4"))
    (tmp_path / "draft.mp4").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        normalise.rewrite(tmp_path / "video.mp4", film, tmp_path / "draft.mp4", Target())


def test_the_rate_is_that_of_the_time_stamps(tmp_path: Path) -> None:
    import av

    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
            frame.pts, frame.time_base = number**2, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    film = probe.probe(path)
    assert film.notes == ("variable rate",)
    assert film.fps == pytest.approx(19 / (19**2 / 25), rel=0.01)
