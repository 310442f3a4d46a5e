"""A run's HTML page: what it shows, that it loads nothing, and bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srtod.engine.page import run_page
from srtod.report import main

CLASSES = """# Classes

| class | objects |   AP |
|-------|--------:|-----:|
| a<b   |       3 | 50.0 |
| c\\|d  |       1 |    - |

| another | table |
"""
LOG = """AP,APm,epoch,filter_share,learning_rate,step,threshold_x255,train/loss
,,0,,0.1,9,30.5,2.0
,,0,,0.1,19,20.5,1.0
0.25,-1.0,0,0.1,,19,,
"""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two panels, of which one has a hostile name."""
    folder = tmp_path / "run & more"
    panels = folder / "report" / "panels"
    panels.mkdir(parents=True)
    for name in ("01_<script>alert(1)<", "02_b"):
        Image.fromarray(np.zeros((30, 90, 3), np.uint8)).save(panels / f"{name}.png")
    Image.fromarray(np.full((60, 200, 3), 255, np.uint8)).save(folder / "report" / "pr_curves.png")
    (folder / "report" / "per_class.md").write_text(CLASSES)
    (folder / "report" / "metrics.json").write_text(json.dumps(summary()))
    (folder / "logs").mkdir()
    (folder / "logs" / "metrics.csv").write_text(LOG)
    return folder


def summary() -> dict[str, object]:
    return {
        "metrics": {"AP": 0.256, "APm": -1.0, "F1_threshold": 0.5},
        "test_set": {"images": 5, "objects": 4, "ignore_regions": 0},
        "epoch": 3,
        "seed": 7,
        "device": "an abacus",
        "commit": None,
        "versions": {"torch": "2.14"},
        "config": {"detector": "fcos", "self_reconstruction": False, "epochs": 12, "data": "päth"},
    }


class Page(HTMLParser):
    """The addresses, the table cells and the words of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())
        if self.tags and self.tags[-1] in ("td", "th") and data.strip():
            self.cells.append(data.strip())


def test_what_it_shows(folder: Path) -> None:
    page = Page(run_page(folder, folder / "report"))
    assert page.cells == [
        "AP",
        "APm",
        "F1_threshold",
        "25.6",
        "-",
        "0.500",
        "class",
        "objects",
        "AP",
        "a<b",
        "3",
        "50.0",
        "c|d",
        "1",
        "-",
    ]
    text = "\n".join(page.words)
    for words in (
        "run & more",
        "fcos, without self-reconstruction, after epoch 3 of 12",
        "01_<script>alert(1)<",
        "päth",
    ):
        assert words in text
    assert "an installed version" in text
    # The plots are the losses, AP, filter, threshold and learning rate; then come the other pictures.
    assert page.tags.count("img") == 5 + 1 + 2


def test_it_runs_nothing_and_loads_nothing(folder: Path) -> None:
    html = run_page(folder, folder / "report")
    page = Page(html)
    assert "script" not in page.tags
    assert all(address.startswith("data:") for address in page.addresses)
    assert "default-src 'none'" in html


def test_a_run_without_log_or_panels(folder: Path) -> None:
    shutil.rmtree(folder / "logs")
    shutil.rmtree(folder / "report" / "panels")
    page = Page(run_page(folder, folder / "report"))
    assert {"The run has no log.", "None were made (panels: 0)."} <= set(page.words)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": 3, "metrics": {}, "test_set": {}}'])
def test_a_damaged_summary(folder: Path, content: str) -> None:
    (folder / "report" / "metrics.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"metrics.json is damaged or no summary of a run .*--resume .* writes it anew"
    ):
        run_page(folder, folder / "report")


def test_the_command_writes_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder)])
    page = folder / "report" / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text() == run_page(folder, folder / "report")
    other = tmp_path / "other.html"
    other.write_text("precious")
    with pytest.raises(FileExistsError, match=r"other.html exists; choose another name, or add --overwrite"):
        main([str(folder), "--output", str(other)])
    main([str(folder), "--output", str(other), "--overwrite"])
    assert other.read_text() == page.read_text()


def test_no_run_and_one_that_has_not_ended(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no report; pass the folder of a training run"):
        main([str(tmp_path)])
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"has no report; train it to the end \(srtod train --resume"):
        main([str(tmp_path)])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_and_asks_for_nothing(folder: Path, tmp_path: Path, width: int) -> None:
    main([str(folder)])
    picture, requests = tmp_path / "page.png", tmp_path / "requests.json"
    page = folder / "report" / "report.html"
    browser = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={requests}", f"--window-size={width},2000",
         f"--screenshot={picture}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in browser.stderr
    asked = [event.get("params", {}).get("initiator") for event in json.loads(requests.read_text())["events"]]
    assert "null" not in asked  # the origin of a file; the browser's own requests have another
    shown = np.asarray(Image.open(picture).convert("L"))
    assert shown.shape == (2000, width)
    assert (shown[:, -4:] > 200).all()  # nothing reaches beyond the window's edge
    assert (shown < 100).sum() > 500  # words
