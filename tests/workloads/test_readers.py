"""Frames are what PyAV decodes from the first frame on, with either decoder, in the asked order."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from barcodes import barcode, numbers_of, write

from workloads import readers
from workloads.readers import UnreadableVideo, read, versions

DECODERS = tuple(versions())


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety frames in closed GOPs of twelve with B-frames."""
    path = tmp_path_factory.mktemp("videos") / "plain.mp4"
    return write(path, map(barcode, range(90)), g="12", bf="2")


@pytest.fixture(scope="module")
def open_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GOPs whose first frames lean on the GOP before, which a seek to the key frame breaks."""
    path = tmp_path_factory.mktemp("videos") / "open.mp4"
    params = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
    return write(path, map(barcode, range(90)), **{"x264-params": params})


@pytest.mark.parametrize("decoder", DECODERS)
def test_all_frames_come_in_order(video: Path, decoder: str) -> None:
    frames_THWC = read(video, decoder=decoder)
    assert frames_THWC.dtype == np.uint8
    assert frames_THWC.shape == (90, 64, 96, 3)
    assert numbers_of(frames_THWC) == list(range(90))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("indices", [(5,), (30, 10, 20), (7, 7, 3, 7), (89, 0), range(0, 90, 11)])
def test_asked_frames_come_in_the_asked_order(
    video: Path, decoder: str, indices: tuple[int, ...]
) -> None:
    assert numbers_of(read(video, indices, decoder=decoder)) == list(indices)


@pytest.mark.parametrize("decoder", DECODERS)
def test_random_frames_of_an_open_gop_are_the_asked_ones(open_gop: Path, decoder: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = rng.integers(0, 90, 5).tolist()
        assert numbers_of(read(open_gop, indices, decoder=decoder)) == indices


@pytest.mark.parametrize("name", ["video", "open_gop"])
def test_decoders_agree_bit_for_bit(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    truth_THWC = read(path, decoder="pyav")
    for decoder in DECODERS:
        assert np.array_equal(read(path, decoder=decoder), truth_THWC)
        assert np.array_equal(read(path, (50, 13), decoder=decoder), truth_THWC[[50, 13]])


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_limit_ends_the_pass_and_may_exceed_the_video(video: Path, decoder: str) -> None:
    assert numbers_of(read(video, limit=4, decoder=decoder)) == [0, 1, 2, 3]
    assert len(read(video, limit=1000, decoder=decoder)) == 90


@pytest.mark.parametrize("width", [16, 24, 40, 48, 62, 72])
def test_narrow_videos_are_read_right_although_decord_cannot(tmp_path: Path, width: int) -> None:
    path = write(tmp_path / "narrow.mp4", (barcode(n, 48, width) for n in range(6)))
    assert np.array_equal(read(path), read(path, decoder="pyav"))


@pytest.mark.parametrize("decoder", ["auto", *DECODERS])
def test_an_index_beyond_the_last_frame_names_the_count(video: Path, decoder: str) -> None:
    with pytest.raises(UnreadableVideo, match="frame 90 was asked for, it has only 90"):
        read(video, (3, 90), decoder=decoder)


@pytest.mark.parametrize("indices", [(-1,), (0, -2), ()])
def test_negative_and_no_indices_are_refused(video: Path, indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="frame numbers from 0") as caught:
        read(video, indices)
    assert not isinstance(caught.value, UnreadableVideo)


def test_transport_streams_are_read_in_full(tmp_path: Path) -> None:
    path = write(tmp_path / "stream.ts", map(barcode, range(90)), g="30", bf="2")
    assert numbers_of(read(path)) == list(range(90))


def test_a_codec_that_decord_lacks_is_left_to_pyav(tmp_path: Path) -> None:
    path = write(tmp_path / "av1.mkv", map(barcode, range(5)), codec="libsvtav1")
    assert numbers_of(read(path)) == list(range(5))


def test_frames_hidden_by_an_edit_list_are_not_shown(video: Path, tmp_path: Path) -> None:
    path = trimmed(video, tmp_path / "trimmed.mp4", seconds=0.8)
    shown = numbers_of(read(path, decoder="pyav"))
    assert 0 < shown[0] < 90 - len(shown) + 1
    assert numbers_of(read(path)) == shown
    some = [len(shown) - 1, 0, len(shown) // 2]
    assert numbers_of(read(path, some)) == [shown[index] for index in some]


def trimmed(source: Path, path: Path, seconds: float) -> Path:
    """Copy packets from the key frame before `seconds` on, timed to start at `seconds`."""
    import av

    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        cut = round(seconds / stream.time_base)
        before.seek(cut, stream=stream)
        for packet in before.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, copy
                after.mux(packet)
    return path


@pytest.mark.parametrize("decoder", DECODERS)
def test_lying_frames_are_turned_upright(tmp_path: Path, decoder: str) -> None:
    """A quarter turn is in the file, as phones write it; undone, the bars stand again."""
    path = tmp_path / "lying.mp4"
    write(path, (np.rot90(barcode(n, 96, 128), -1).copy() for n in range(4)))
    turn(path)
    frames_THWC = read(path, decoder=decoder)
    assert frames_THWC.shape == (4, 96, 128, 3)
    assert numbers_of(frames_THWC) == list(range(4))


def turn(path: Path) -> None:
    """Write a display matrix of 90 degrees counter-clockwise over the identity in `tkhd`."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = (0, -one, 0, one, 0, 0, 0, 0, 1 << 30)
    content[start : start + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in matrix)
    path.write_bytes(content)


def test_a_name_may_look_like_a_protocol(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = Path("12:30.mp4")
    named.symlink_to(video)
    for decoder in readers.MODULES:
        assert len(read(named, limit=2, decoder=decoder)) == 2
    assert readers.counted(named, 2)[1] == 90


def test_the_largest_of_several_streams_is_read(tmp_path: Path) -> None:
    import av

    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        sizes = ((32, 48), (64, 96))
        streams = [container.add_stream("libx264", rate=25) for _ in sizes]
        for stream, (height, width) in zip(streams, sizes, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(5):
            for stream, size in zip(streams, sizes, strict=True):
                frame = av.VideoFrame.from_ndarray(barcode(number, *size), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    assert read(path, decoder="pyav").shape == (5, 64, 96, 3)


def test_a_title_that_is_no_utf8_does_not_matter(tmp_path: Path) -> None:
    import av

    path = tmp_path / "title.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLETITLE"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(barcode(5), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"TITLETITLE", b"\xe9\xff\xfe" + b"TITLETI"))
    assert numbers_of(read(path, decoder="pyav")) == [5]


def broken(kind: str, video: Path, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "sound":
        return only_sound(path)
    content = video.read_bytes()
    if kind != "missing":
        path.write_bytes(
            {
                "empty": b"",
                "text": b"this is no video\n" * 50,
                "truncated": content[: len(content) // 2],
                "headless": b"\0" * 64 + content[64:],
            }[kind]
        )
    return path


def only_sound(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("decoder", ["auto", *DECODERS])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("empty", "empty file"),
        ("text", "cannot be decoded: "),
        ("truncated", "cannot be decoded: "),
        ("headless", "cannot be decoded: "),
        ("sound", "no video stream"),
    ],
)
def test_a_broken_file_is_an_unreadable_video_with_path_and_reason(
    video: Path, tmp_path: Path, kind: str, reason: str, decoder: str
) -> None:
    path = broken(kind, video, tmp_path)
    with pytest.raises(UnreadableVideo) as caught:
        read(path, decoder=decoder)
    assert caught.value.path == path
    assert "\n" not in caught.value.reason
    if decoder != "decord":  # whose own words are longer
        assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_change_of_resolution_is_refused(tmp_path: Path, decoder: str) -> None:
    parts = []
    for number, size in enumerate(((64, 96), (96, 128))):
        part = write(tmp_path / f"{number}.ts", (barcode(n, *size) for n in range(30)), g="10")
        parts.append(part.read_bytes())
    path = tmp_path / "changing.ts"
    path.write_bytes(b"".join(parts))
    with pytest.raises(UnreadableVideo, match="its resolution changes at frame 30"):
        read(path, decoder=decoder)


def test_pyav_refuses_frames_that_the_codec_had_to_make_up(tmp_path: Path) -> None:
    path = write(tmp_path / "damaged.avi", map(barcode, range(60)), codec="mpeg4")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(UnreadableVideo, match="is corrupt"):
        read(path, decoder="pyav")


def test_an_unreadable_video_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableVideo(Path("a.mp4"), "empty file")))
    assert (error.path, error.reason, str(error)) == (
        Path("a.mp4"),
        "empty file",
        "a.mp4: empty file",
    )


def test_importing_the_module_needs_no_decoder() -> None:
    code = "import sys; sys.modules['av'] = sys.modules['decord'] = None; import workloads.readers"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_decord_is_absent_pyav_reads(video: Path) -> None:
    code = (
        "import sys; sys.modules['decord'] = None; from pathlib import Path\n"
        "from workloads.readers import read, versions\n"
        "assert list(versions()) == ['pyav'], versions()\n"
        "assert len(read(Path(sys.argv[1]))) == 90"
    )
    subprocess.run([sys.executable, "-c", code, str(video)], check=True)
