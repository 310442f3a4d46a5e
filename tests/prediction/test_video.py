"""Videos, cameras and streams: which frames come, what is written of them, and what becomes of it when they end."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import srtod
from srtod import predict
from srtod._support.cli import run
from srtod.prediction import Video, is_video
from srtod.prediction import video as module

av = pytest.importorskip("av", reason="needs srtod[video]")

RATE = Fraction(30000, 1001)


def shade(number: int) -> int:
    """The grey of a frame."""
    return 20 + 20 * number


def write(
    path: Path, frames: int = 6, *, turn: int = 0, codec: str = "mpeg4", size: tuple[int, int] = (96, 64)
) -> Path:
    """A video of grey frames, each brighter than the one before; the upper half of each is black."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.bit_rate = *size, 4_000_000
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), shade(number), np.uint8)
            pixels[: size[1] // 2] = 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4")


def call(*arguments: object) -> int | str:
    """The exit status of `srtod predict`, on a CPU."""
    try:
        run(lambda: predict.main([*map(str, arguments), "--device", "cpu"]))
    except SystemExit as end:
        return end.code or 0
    return 0


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def decoded(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def shades(video: Video) -> list[int]:
    """Which frame of `write` each frame of a video is, by its grey."""
    return [round((float(frame.pixels[-8:].mean()) - 20) / 20) for frame in video]


def test_frames_have_their_numbers_and_times(clip: Path) -> None:
    with Video(clip, every=2) as video:
        assert (video.rate, video.frames) == (RATE, 3)
        frames = list(video)
    assert [frame.number for frame in frames] == [0, 2, 4]
    assert [frame.time for frame in frames] == pytest.approx([0, 2 / RATE, 4 / RATE])
    for frame in frames:
        assert (frame.pixels.shape, frame.pixels.dtype) == ((64, 96, 3), np.uint8)
        assert abs(frame.pixels[-8:].mean() - shade(frame.number)) < 4  # MPEG-4's loss
        assert frame.pixels[:24].mean() < 4


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV writes no turned videos")
def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    with Video(write(tmp_path / "turned.mp4", 1, turn=90)) as video:
        [frame] = video
    assert frame.pixels.shape == (96, 64, 3)
    assert frame.pixels[:, :24].mean() < 4  # what was above is now left
    assert frame.pixels[:, -24:].mean() > 10


def test_what_is_a_video_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    videos = ["a.MP4", "0", "/dev/video1", "rtsp://host/a", "http://host/a.jpg"]
    assert [name for name in [*videos, "a.jpg", "a", "list.txt", "*.png"] if is_video(name)] == videos
    Path("0").mkdir()
    Path("a.mp4").mkdir()
    assert not is_video("0")
    assert not is_video("a.mp4")


def test_the_folder_of_a_video(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(checkpoint, clip, out, "--every", 2, "--batch-size", 2, "--score", 0.3) == 0
    assert files(out) == ["detections.csv", "detections.json", "images.json", "video.mp4"]
    with Video(clip, every=2) as video:
        frames = list(video)
    predictor = srtod.Predictor(checkpoint, "cpu", batch_size=2)
    expected = list(predictor.stream((frame.pixels for frame in frames), colour="rgb"))
    listed = read(out / "images.json")
    assert listed["images"] == [
        {"id": n, "file_name": f"{clip.name}#{2 * n - 2}", "frame_id": 2 * n - 2, "width": 96, "height": 64}
        | {"time": round(frame.time, 6)}
        for n, frame in enumerate(frames, 1)
    ]
    assert [category["id"] for category in listed["categories"]] == [3, 7]
    results = [result for n, found in enumerate(expected, 1) for result in found.to_coco(n)]
    assert read(out / "detections.json") == results
    header, *rows = csv.reader((out / "detections.csv").open())
    assert header == ["frame", "time", "class", "score", "x1", "y1", "x2", "y2"]
    assert len(rows) == len(results)
    assert rows[0][:2] == ["0", "0.0"]
    assert rows[-1][:2] == ["4", str(round(frames[2].time, 6))]
    assert rows[-1][2:] == [str(value) for value in expected[2].csv_rows()[-1][1:]]

    pictures = decoded(out / "video.mp4")
    with av.open(str(out / "video.mp4")) as container:
        assert container.streams.video[0].average_rate == RATE / 2
        assert container.streams.video[0].codec_context.name == "h264"
    assert len(pictures) == 3
    picture = expected[2].draw(0.3)
    assert (pictures[2].width, pictures[2].height) == picture.size
    assert np.abs(pictures[2].to_ndarray(format="rgb24").astype(int) - np.asarray(picture)).mean() < 6
    printed = capsys.readouterr()
    assert printed.out == f"{out}: {len(results)} detections in 3 frames\n"
    assert re.search(r"3/3 \[.*frame/s|3/3 \[.*s/frame", printed.err)

    assert call(checkpoint, clip, out) == 2
    assert f"{out} already holds predictions" in capsys.readouterr().err
    assert call(checkpoint, clip, out, "--overwrite", "--no-pictures", "--every", 6) == 0
    assert files(out) == ["detections.csv", "detections.json", "images.json"]


def test_a_video_without_h264_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENCODERS", ("no_such_encoder", "mpeg4"))
    with module.VideoWriter(tmp_path / "a.mp4", RATE) as film:
        for number, size in enumerate([(33, 21), (33, 21), (50, 9)]):
            film.write(Image.new("RGB", size, "white"), float(number / RATE))
    frames = decoded(tmp_path / "a.mp4")
    assert [(frame.width, frame.height) for frame in frames] == [(34, 22)] * 3
    assert frames[2].to_ndarray(format="rgb24")[14:].mean() < 9  # below the picture that was lower


def test_one_batch_of_frames_is_held_at_a_time(
    checkpoint: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    predictor = srtod.Predictor(checkpoint, "cpu", batch_size=2)
    upright, detect = module._upright, predictor.detect
    monkeypatch.setattr(module, "_upright", lambda frame: events.append("frame") or upright(frame))
    monkeypatch.setattr(predictor, "detect", lambda batch: events.append(len(batch)) or detect(batch))
    with Video(clip, every=2) as video:
        srtod.prediction.predict_video(predictor, video, tmp_path / "out", pictures=False)
    assert events == ["frame", "frame", 2, "frame", 1]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_keeps_the_frames_until_then(
    checkpoint: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: signal.Signals,
    status: int,
) -> None:
    out, times, detect = tmp_path / "out", 1, srtod.Predictor.detect

    def interrupted(self: srtod.Predictor, images: Any) -> Any:
        for _ in range(times):
            os.kill(os.getpid(), kind)
        return detect(self, images)

    monkeypatch.setattr(srtod.Predictor, "detect", interrupted)
    assert call(checkpoint, clip, out, "--batch-size", 4) == status
    assert capsys.readouterr().err.endswith(f"interrupted; {out} holds the 4 frames until then\n")
    assert [entry["frame_id"] for entry in read(out / "images.json")["images"]] == [0, 1, 2, 3]
    assert {result["image_id"] for result in read(out / "detections.json")} == {1, 2, 3, 4}
    assert len(decoded(out / "video.mp4")) == 4

    times = 2
    assert call(checkpoint, clip, tmp_path / "other") == status
    assert capsys.readouterr().err.endswith(f"interrupted; {tmp_path / 'other'} is as it was\n")
    assert files(tmp_path) == ["out", *(f"out/{name}" for name in files(out))]


def spoil(path: Path, number: int) -> Path:
    """Overwrites a frame of a motion JPEG by zeros."""
    content = path.read_bytes()
    frame = re.findall(rb"\xff\xd8\xff.*?\xff\xd9", content, re.DOTALL)[number]
    path.write_bytes(content.replace(frame, bytes(len(frame))))
    return path


def test_a_damaged_video_gives_the_frames_that_can_be_decoded(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoil(write(tmp_path / "clip.avi", codec="mjpeg"), 2)
    assert call(checkpoint, path, tmp_path / "out", "--no-pictures") == 0
    assert f"left out 1 damaged packets of {path}" in capsys.readouterr().err
    assert len(read(tmp_path / "out" / "images.json")["images"]) == 5


class Camera(BaseHTTPRequestHandler):
    """Sends a motion JPEG of three frames without an end that is known, and breaks off."""

    frames: Path
    answers = 2
    """How many requests are answered."""

    def do_GET(self) -> None:
        type(self).answers -= 1
        if self.answers < 0:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for frame in re.split(b"(?=\xff\xd8\xff)", self.frames.read_bytes())[1:]:
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(frame))
            self.wfile.write(frame + b"\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a camera that answers twice."""
    monkeypatch.setattr(Camera, "frames", write(tmp_path / "frames.mjpeg", 3, codec="mjpeg"), raising=False)
    monkeypatch.setattr(Camera, "answers", 2)
    server = HTTPServer(("127.0.0.1", 0), Camera)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}/live?token=secret"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_stream_that_drops_is_tried_again_and_what_came_is_kept(
    checkpoint: Path, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.05, 0.1))
    assert call(checkpoint, stream, tmp_path / "out") == 0
    printed = capsys.readouterr().err
    name = stream.replace("user:secret@", "").replace("?token=secret", "")
    assert re.search(rf"{name} broke off after \d frames \(.*\), and 2 tries to reach it again failed; what", printed)
    listed = read(tmp_path / "out" / "images.json")
    frames = listed["images"]
    assert [frame["frame_id"] for frame in frames] == list(range(6))
    assert frames[3]["time"] >= frames[0]["time"] + 0.05
    assert len(decoded(tmp_path / "out" / "video.mp4")) == 6
    assert "secret" not in (tmp_path / "out" / "images.json").read_text() + printed


def test_a_stopped_stream_is_not_tried_again(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (60.0,))
    with Video(stream) as video:
        timer = threading.Timer(0.5, video.stop)
        timer.start()
        assert len(list(video)) == 3
        timer.join()
    assert not video.lost


def test_a_stream_that_nobody_answers_is_given_up(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        for listening, reason in ((False, "Connection refused"), (True, "no answer in 0.3 s")):
            if listening:
                listener.listen(1)
            for scheme in ("http", "rtsp"):
                address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/live"
                assert call(checkpoint, address, tmp_path / "out") == 2
                assert f"error: {address} cannot be read as a video ({reason}); check" in capsys.readouterr().err
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("absent.mp4 out", "the video absent.mp4 does not exist"),
        ("empty.mp4 out", "empty.mp4 is empty; record or copy it again"),
        ("noise.mp4 out", "noise.mp4 cannot be read as a video (Invalid data found when processing input); convert"),
        ("cut.mp4 out", "cut.mp4 cannot be read as a video ("),
        ("sound.mp4 out", "sound.mp4 cannot be read as a video (it holds no pictures); convert"),
        ("pipe.mp4 out", "pipe.mp4 is a pipe, a socket or a device; pass a regular file"),
        ("playlist.mp4 out", "playlist.mp4 cannot be read as a video (Invalid data found"),
        ("black.avi out", "black.avi holds no frame that can be decoded; replace it"),
        ("clip.xyz out", "clip.xyz is no image, and does not end as a list (.txt) or a video (.avi, .flv,"),
        ("clip.mp4 out --every 0", "--every must be at least 1, got 0"),
        ("a.png out --every 2", "--every is for videos, cameras and streams; leave it out"),
        ("clip.mp4 out --figures", "--figures is for images; leave it out"),
        ("clip.mp4 out --coco gt.json", "--coco is for images; leave it out"),
        ("clip.mp4 a.png out", "a video, camera or stream must be the only source; run the command once for each"),
        ("987 out", "camera 987 is not there; cameras of this machine: "),
        ("gopher://host/a out", "gopher:// is no stream; pass a file, or an address of http, https,"),
        ("clip.mp4 mine", "mine holds other things than predictions (detections.csv); pass a new folder"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_changes_nothing(
    checkpoint: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "clip.xyz"):
        Path(name).symlink_to(clip)
    Path("cut.mp4").write_bytes(clip.read_bytes()[:-400])
    Path("empty.mp4").touch()
    Path("noise.mp4").write_bytes(bytes(range(256)) * 40)
    Path("playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    os.mkfifo("pipe.mp4")
    with av.open("sound.mp4", "w") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    spoil(write(Path("black.avi"), 1, codec="mjpeg"), 0)
    Image.new("RGB", (32, 32)).save("a.png")
    Path("mine").mkdir()
    Path("mine", "detections.csv").touch()
    before = files(tmp_path)
    assert call(checkpoint, *arguments.split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert files(tmp_path) == before


def test_frames_above_the_limit_of_images_are_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(ValueError, match=r"\(frames of 96x64 pixels are above the limit of 6000 pixels\)"):
        Video(clip)


def test_without_pyav_it_says_what_to_install(
    checkpoint: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'srtod\[video\]'"):
        Video(clip)
    assert call(checkpoint, clip, tmp_path / "out") == 2
    assert "error: videos, cameras and streams need PyAV; pip install 'srtod[video]'" in capsys.readouterr().err


def test_frames_of_ones_own_are_taken_one_by_one(checkpoint: Path, clip: Path) -> None:
    predictor = srtod.Predictor(checkpoint, "cpu")
    taken = []

    def frames() -> Iterator[np.ndarray[Any, Any]]:
        with Video(clip) as video:
            for frame in video:
                taken.append(frame.number)
                yield frame.pixels[:, :, ::-1]

    first = next(predictor.stream(frames(), colour="bgr"))
    assert taken == [0]
    with Video(clip) as video:
        assert torch.equal(first["boxes"], predictor(next(iter(video)).pixels, colour="rgb")["boxes"])
