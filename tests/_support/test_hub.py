"""Checkpoints by their address on the hub: a server stands in for it, the library and its cache are the real ones."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

import srtod
from srtod import info
from srtod._support.cli import run
from srtod._support.hub import on_disk
from srtod.models.checkpoint import load_detector

pytest.importorskip("huggingface_hub", reason="needs srtod[hub]")
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERRORS = {"gone": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "down": (409, None)}
"""What the server answers for repositories of these names: status, and the hub's word for it; 5xx is tried again."""


class Hub(BaseHTTPRequestHandler):
    """A hub with a repository `a/b`, which has a revision `main` with the files of `files`."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        owner, name, _, revision, file = self.path.strip("/").split("/", 4)
        if name in ERRORS:
            self._answer(*ERRORS[name])
        elif (owner, name, revision in ("main", COMMIT)) != ("a", "b", True):
            self._answer(404, "RevisionNotFound")
        elif file not in self.files:
            self._answer(404, "EntryNotFound")
        else:
            self._answer(200, None, self.files[file])

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, error: str | None, content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """The hub, with a checkpoint as best.ckpt; the cache is empty."""
    monkeypatch.setattr(Hub, "files", {"best.ckpt": checkpoint.read_bytes(), "old/a.ckpt": b"no"}, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    places = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", places)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_checkpoint_is_fetched_once(
    server: ThreadingHTTPServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = srtod.load("hf://a/b", score_threshold=0.5)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # from here on there is the cache alone
    expected = load_detector(checkpoint).detector.state_dict()
    assert not detector.training
    assert all(torch.equal(value, expected[name]) for name, value in detector.state_dict().items())
    assert len(detector([torch.rand(3, 48, 64)])) == 1
    assert on_disk("hf://a/b@main/best.ckpt").read_bytes() == checkpoint.read_bytes()
    assert srtod.Predictor("hf://a/b", "cpu").class_names == ["drone", "bird"]
    info.main(["hf://a/b"])
    assert "drone, bird" in capsys.readouterr().out


def test_a_file_in_the_cache_is_checked_as_any_other(server: ThreadingHTTPServer) -> None:
    with pytest.raises(ValueError, match=r"old/a\.ckpt is damaged or not a checkpoint"):
        srtod.load("hf://a/b/old/a.ckpt")


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("hf://a/b/c.ckpt", FileNotFoundError, r"a/b has no file c\.ckpt; write hf://OWNER/NAME, "),
        ("hf://a/b@v2", FileNotFoundError, "a/b has no revision v2; correct it"),
        ("hf://a/gone", FileNotFoundError, "has no repository a/gone, or shows it to others alone; correct the name"),
        ("hf://a/gated", FileNotFoundError, "a/gated asks for consent; give it on the hub, and log in"),
        ("hf://a/down", FileNotFoundError, r"best\.ckpt is not in the local cache, and the hub cannot be reached"),
        ("hf://a", ValueError, "is no address on the hub; write hf://OWNER/NAME, "),
        ("hf://", ValueError, "is no address on the hub"),
        ("hf://a/b@/c.ckpt", ValueError, "is no address on the hub"),
        ("hf://datasets/a/b/c.ckpt", ValueError, "names no file in a repository of models; write "),
    ],
)
def test_what_cannot_be_fetched(
    server: ThreadingHTTPServer, address: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{address}.*{message}") as raised:
        srtod.load(address)
    assert "127.0.0.1" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_a_network(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"hf://a/b: best\.ckpt is not in the local cache, and the hub cannot be reached; fetch it once with a net"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=message):
        srtod.load("hf://a/b")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit) as end:
        run(lambda: print(srtod.load("hf://a/b")))
    assert end.value.code == 2
    expected = "error: hf://a/b needs huggingface_hub; pip install 'srtod[hub]', or pass a file\n"
    assert capsys.readouterr().err == expected
