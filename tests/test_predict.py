"""`python -m srtod.predict`: what it writes, under which ids, and that it is there whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

import srtod
from srtod import evaluate, predict
from srtod._support.cli import run
from srtod.evaluation import coco_results
from srtod.models import build_detector
from srtod.models.checkpoint import describe, write_checkpoint
from srtod.prediction import Slicing, find_images, predict_folder
from srtod.prediction import folder as prediction_folder
from srtod.visualization.marks import MISSED

CUT = "pass --slice 640"
CATEGORIES = [{"id": 3, "name": "drone"}, {"id": 7, "name": "bird"}, {"id": 9, "name": "kite"}]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four images of several kinds, with other files beside them."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    picture = F.to_pil_image(torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0)))
    picture.save(folder / "b.png")
    picture.convert("L").save(folder / "b.TIF")
    picture.convert("P").save(folder / "sub" / "a.png")
    Image.new("I;16", (50, 40), 9999).save(folder / "c.tiff")
    picture.save(folder / ".hidden" / "d.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def call(*arguments: object, program: Any = predict) -> int | str:
    """The exit status of the command line."""
    argv, sys.argv = sys.argv, [program.__name__, *map(str, arguments)]
    try:
        run(program.main)
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = argv
    return 0


def ground_truth(path: Path, *names: str, size: tuple[int, int] = (56, 40)) -> Path:
    """A COCO file that lists images under the ids 10, 20, ..., each with an object."""
    ids = range(10, 10 * len(names) + 1, 10)
    content = {
        "images": [
            {"id": number, "file_name": name, "width": size[0], "height": size[1], "camera": "left"}
            for number, name in zip(ids, names, strict=True)
        ],
        "annotations": [{"id": n, "image_id": n, "category_id": 3, "bbox": [4, 4, 12, 12]} for n in ids],
        "categories": CATEGORIES,
    }
    path.write_text(json.dumps(content))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def leftovers(folder: Path) -> list[Path]:
    return [*folder.rglob("*.part"), *folder.rglob("*.before")]


def test_a_folder(checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    assert call(checkpoint, images, out, "--device", "cpu") == 0
    pictures = ["b.TIF.png", "b.png.png", "c.png", "sub/a.png"]
    assert files(out) == ["detections.json", "images.json", *(f"pictures/{name}" for name in pictures)]
    listed = read(out / "images.json")
    names = ["b.TIF", "b.png", "c.tiff", "sub/a.png"]
    assert [(entry["id"], entry["file_name"]) for entry in listed["images"]] == list(enumerate(names, 1))
    assert [(entry["width"], entry["height"]) for entry in listed["images"]] == [(56, 40), (56, 40), (50, 40), (56, 40)]
    assert listed["categories"] == CATEGORIES[:2]

    predictor = srtod.Predictor(checkpoint, "cpu")
    expected = [
        result
        for number, name in enumerate(names, 1)
        for result in coco_results(predictor(images / name), number, predictor.category_ids)
    ]
    assert read(out / "detections.json") == expected
    printed = capsys.readouterr()
    assert printed.out == f"{out}: {len(expected)} detections in 4 images\n"
    assert "left out 1 files that are not images: notes.txt" in printed.err
    assert "4/4" in printed.err
    assert not leftovers(tmp_path)


def test_large_images_are_looked_at_tile_by_tile(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    options = ("--device", "cpu", "--no-pictures", "--slice", 40, "--overlap", 0.5, "--class-agnostic-nms")
    assert call(checkpoint, images / "b.png", tmp_path / "out", *options) == 0
    predictor = srtod.Predictor(checkpoint, "cpu", slicing=Slicing(40, 0.5), class_agnostic_nms=True)
    expected = predictor(images / "b.png")
    assert read(tmp_path / "out" / "detections.json") == expected.to_coco()
    assert float(expected["boxes"][:, 2].max()) > 40


def test_figures_without_pictures(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(checkpoint, images / "b.png", out, "--device", "cpu", "--figures", "--no-pictures") == 0
    assert files(out) == ["detections.json", "figures/b.png", "images.json"]
    assert Image.open(out / "figures" / "b.png").size[0] > 3 * 512


def test_ids_of_a_coco_file_and_its_evaluation(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = ground_truth(tmp_path / "gt.json", "sub/a.png", "b.png")
    assert call(checkpoint, images, tmp_path / "out", "--device", "cpu", "--coco", truth, "--no-pictures") == 0
    assert f"left out 3 files that are not in {truth}: b.TIF, c.tiff, notes.txt" in capsys.readouterr().err
    assert {result["image_id"] for result in read(tmp_path / "out" / "detections.json")} == {10, 20}
    listed = read(tmp_path / "out" / "images.json")["images"]
    assert listed == read(truth)["images"]
    assert call(truth, tmp_path / "out" / "detections.json", program=evaluate) == 0
    assert "AP50" in capsys.readouterr().out
    assert call(tmp_path / "out" / "images.json", tmp_path / "out" / "detections.json", program=evaluate) == 0


def test_pictures_tell_outcomes_apart_where_the_coco_file_has_annotations(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    missed = list(bytes.fromhex(MISSED.colour[1:]))
    for annotated in (True, False):
        truth = ground_truth(tmp_path / "truth.json", "b.png")
        if not annotated:
            truth.write_text(json.dumps(read(truth) | {"annotations": []}))
        out = tmp_path / str(annotated)
        assert call(checkpoint, images, out, "--device", "cpu", "--coco", truth, "--score", "0.9") == 0
        picture = np.array(Image.open(out / "pictures" / "b.png").convert("RGB"))
        assert (picture == missed).all(-1).any() == annotated


def test_evaluation_refuses_the_numbers_of_other_images(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = ground_truth(tmp_path / "truth.json", "b.png", "b.TIF")
    content = read(truth)
    for image, annotation, number in zip(content["images"], content["annotations"], (1, 2), strict=True):
        image["id"] = annotation["image_id"] = number
    truth.write_text(json.dumps(content))
    assert call(checkpoint, images, tmp_path / "out", "--device", "cpu", "--no-pictures") == 0
    (tmp_path / "out" / "detections.json").write_text("[]")  # of whatever detections
    assert call(truth, tmp_path / "out" / "detections.json", program=evaluate) == 2
    assert "numbers other images than" in (error := capsys.readouterr().err)
    assert "1 is b.TIF, not b.png; find the objects again by srtod predict --coco" in error
    (tmp_path / "out" / "images.json").write_text("{}")  # somebody else's
    assert call(truth, tmp_path / "out" / "detections.json", program=evaluate) == 0


def test_the_id_of_one_image_of_a_coco_file(images: Path, tmp_path: Path) -> None:
    truth = ground_truth(tmp_path / "gt.json", "sub/a.png", "b.png")
    [entry] = find_images(images / "sub" / "a.png", truth).entries
    assert (entry["id"], entry["file_name"]) == (10, "a.png")
    with pytest.raises(ValueError, match=r"gt\.json does not list .*c\.tiff"):
        find_images(images / "c.tiff", truth)


def test_every_image_has_a_picture_of_its_own(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    for name in ("e.jpg", "e.png", "e.jpg.bmp", "e.png.bmp", "f.jpg", "f.png/g.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(images / name)
    assert call(checkpoint, images, tmp_path / "out", "--device", "cpu") == 0
    pictures = files(tmp_path / "out" / "pictures")
    assert len(pictures) == 10 == len(read(tmp_path / "out" / "images.json")["images"])
    assert {"e.jpg.png", "e.png.png", "f.png/g.png"} <= set(pictures)
    assert call(checkpoint, images, tmp_path / "out", "--device", "cpu", "--overwrite") == 0


def test_links_to_folders_are_followed_once(images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (images / "b.png").rename(other / "b.png")
    (images / "link").symlink_to(other)
    (images / "again").symlink_to(images / "sub")
    (images / "loop").symlink_to(images)
    (other / "back").symlink_to(images / "sub")
    (images / "gone.png").symlink_to("nowhere")
    os.mkfifo(images / "pipe.png")
    found = find_images(images)
    assert [entry["file_name"] for entry in found.entries] == ["b.TIF", "c.tiff", "link/b.png", "sub/a.png"]
    assert found.left_out == ["gone.png", "notes.txt", "pipe.png"]


def test_images_outside_the_folder_if_that_is_allowed(images: Path, tmp_path: Path) -> None:
    truth = ground_truth(tmp_path / "gt.json", "../b.png")
    (images / "b.png").rename(images.parent / "b.png")
    with pytest.raises(ValueError, match=r"gt.json: images\[0\]: file_name '../b.png' leads out of the folder"):
        find_images(images, truth)
    assert len(find_images(images, truth, allow_outside=True).entries) == 1


def test_predictions_made_before_are_not_looked_at(images: Path) -> None:
    (images / "out" / "pictures").mkdir(parents=True)
    (images / "b.png").rename(images / "out" / "pictures" / "b.png")
    assert [entry["file_name"] for entry in find_images(images, without=images / "out").entries] == [
        "b.TIF",
        "c.tiff",
        "sub/a.png",
    ]


def test_one_batch_of_images_is_held_at_a_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcde":
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    predictor = srtod.Predictor(checkpoint, "cpu", batch_size=2)
    events = []
    reading, detecting = prediction_folder.read_image, predictor.detect
    monkeypatch.setattr(prediction_folder, "read_image", lambda *given: events.append("read") or reading(*given))
    monkeypatch.setattr(predictor, "detect", lambda batch: events.append(len(batch)) or detecting(batch))
    predict_folder(predictor, find_images(tmp_path), tmp_path / "out", pictures=False)
    assert events == ["read", "read", 2, "read", "read", 2, "read", 1]


def test_bad_images_stop_it_or_are_counted(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "bad.png").write_bytes((images / "b.png").read_bytes()[:-4000])
    arguments = [checkpoint, images, tmp_path / "out", "--device", "cpu", "--no-pictures"]
    assert call(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {images / 'bad.png'} cannot be read as an image")
    assert "skip_bad_images" in error
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)

    assert call(*arguments, "--skip-bad-images") == 0
    assert "skipped 1 images that cannot be decoded: bad.png" in capsys.readouterr().err
    listed = read(tmp_path / "out" / "images.json")
    assert listed["info"]["skipped"] == ["bad.png"]
    assert [entry["id"] for entry in listed["images"]] == [1, 2, 4, 5]

    assert call(checkpoint, images / "bad.png", tmp_path / "none", "--device", "cpu", "--skip-bad-images") == 2
    assert "none of the 1 images can be read" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_pipe_in_place_of_an_image_is_refused_and_not_waited_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert call(checkpoint, tmp_path / "a.png", tmp_path / "out", "--device", "cpu") == 2
    assert "a.png is a pipe, a socket or a device; pass a regular file" in capsys.readouterr().err


def test_patterns_lists_and_several_sources(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def found(*sources: str | Path, without: str | None = None) -> list[str]:
        listed = find_images(sources, without=without)
        assert [entry["id"] for entry in listed.entries] == list(range(1, len(listed.entries) + 1))
        assert all((listed.folder / entry["file_name"]).is_file() for entry in listed.entries)
        return [entry["file_name"] for entry in listed.entries]

    assert found("images/*") == ["b.TIF", "b.png", "c.tiff"]
    assert find_images("images/*").left_out == ["images/notes.txt"]
    assert found("images/**/*.png", without="images/sub") == ["b.png"]
    (images / "list.txt").write_text("\ufeffsub/a.png\n\n  b.png\r\n" + str(images / "c.tiff"), encoding="utf-8")
    assert found(images / "list.txt") == ["sub/a.png", "b.png", "c.tiff"]
    assert found("images/sub", "images/c.tiff", "images/sub/a.png") == ["sub/a.png", "c.tiff"]
    (images / "b[1].png").symlink_to(images / "b.png")
    assert found("images/b[1].png") == ["b[1].png"]  # a file's name comes before a pattern


def test_a_picture_above_the_decoders_limit_is_to_be_cut(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert call(checkpoint, images / "b.png", tmp_path / "out", "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert "exceeds limit of 2000 pixels" in error
    assert error.endswith("cut it into smaller images, and look at these with --slice 640\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a.ckpt images/*.jpg out", "no image has a name like images/*.jpg; is the pattern relative to this folder?"),
        ("a.ckpt wrong.txt out", "wrong.txt: line 2: 'b.png' is no file; a list has the path of an image on each line"),
        ("a.ckpt blank.txt out", "blank.txt is empty; write the path of an image on each line"),
        ("a.ckpt absent.txt out", "the list absent.txt does not exist"),
        ("a.ckpt images images/sub out --coco gt.json", "gt.json has file names relative to one folder; pass that"),
        ("absent.ckpt images out", "the checkpoint absent.ckpt does not exist"),
        ("images images out", "the checkpoint images is a folder; pass a .ckpt file of a training run"),
        ("run images out", "the checkpoint run is a folder; pass run/checkpoints/best.ckpt"),
        ("a.ckpt images out --threads 0", "--threads must be at least 1, got 0"),
        ("a.ckpt images out --score 1.5", "--score must be from 0 to 1, got 1.5"),
        ("a.ckpt images out --overlap 0.3", "--overlap is that of tiles; add --slice SIZE, or leave it out"),
        ("cut.ckpt images out", "cut.ckpt is damaged or not a checkpoint"),
        ("plain.ckpt images out --figures", "the detector was trained without self-reconstruction and has no figures"),
        ("a.ckpt absent out", "absent does not exist; pass an image or a folder of images"),
        ("a.ckpt empty out", "empty and its subfolders hold no image, no file that ends in .bmp,"),
        ("a.ckpt images .", "., where the predictions are to go, contains the images of images; choose another OUT"),
        ("a.ckpt images images", "images, where the predictions are to go, contains the images of images; choose"),
        ("a.ckpt images images/notes.txt", "images/notes.txt is a file; pass the path of a folder"),
        ("a.ckpt images images/notes.txt/out", "cannot be made (Not a directory); choose another"),
        (
            "a.ckpt images/b.png images --overwrite",
            "images holds other things than predictions (.hidden/d.png, b.TIF, b.png,",
        ),
        ("a.ckpt images extra --overwrite", "extra holds other things than predictions (pictures/holiday.png); pass"),
        ("a.ckpt images trip --overwrite", "trip holds other things than predictions (pictures/a.png); pass a new"),
        ("a.ckpt images before", "before already holds predictions; pass another folder, or set overwrite"),
        ("a.ckpt images out --coco absent.json", "absent.json does not exist"),
        ("a.ckpt images out --coco more.json", "1 of 2 images of more.json are missing from images: z.png; pass the"),
        ("a.ckpt images out --coco twice.json", "file name b.png occurs twice"),
        ("a.ckpt images out --coco size.json", "b.png is 56x40 pixels, but the COCO file says 9x9"),
        (
            "a.ckpt images out --coco other.json",
            "the detector's categories are not those of the COCO file: {3: 'drone'",
        ),
        ("a.ckpt images out --device gpu", "device 'gpu' cannot be used"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_changes_nothing(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.ckpt").symlink_to(checkpoint)
    Path("cut.ckpt").write_bytes(checkpoint.read_bytes()[:-1000])
    if "plain" in arguments:
        model = {"name": "faster_rcnn", "num_classes": 2, "backbone": "mobilenet_v2", "channels": 16}
        plain = build_detector(**model, self_reconstruction=False)
        weights = {f"detector.{name}": value for name, value in plain.state_dict().items()}
        description = describe(model | {"self_reconstruction": False}, ["drone"], [1])
        write_checkpoint({"state_dict": weights, "srtod": description}, "plain.ckpt")
    Path("run", "checkpoints").mkdir(parents=True)
    Path("run", "checkpoints", "best.ckpt").symlink_to(checkpoint)
    Path("empty").mkdir()
    for name in ("before", "extra"):
        Path(name, "pictures").mkdir(parents=True)
        Path(name, "detections.json").write_text("[]")
        listed = {"info": {"description": "images that srtod 1 found objects in", "skipped": ["b/c.jpg"]}}
        Path(name, "images.json").write_text(json.dumps(listed | {"images": [{"file_name": "a.jpg"}]}))
        Path(name, "pictures", "a.png").touch()
    Path("extra", "pictures", "holiday.png").touch()
    Path("trip", "pictures").mkdir(parents=True)
    Path("trip", "pictures", "a.png").touch()
    Path("wrong.txt").write_text("images/b.png\nb.png\n")
    Path("blank.txt").write_text(" \n")
    ground_truth(Path("more.json"), "b.png", "z.png")
    ground_truth(Path("twice.json"), "b.png", "b.png")
    ground_truth(Path("size.json"), "b.png", size=(9, 9))
    other = read(ground_truth(Path("other.json"), "b.png"))
    other["categories"][1]["name"] = "plane"
    Path("other.json").write_text(json.dumps(other))
    before = files(tmp_path)
    assert call(*arguments.split(), "--no-pictures") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert files(tmp_path) == before
    assert not leftovers(tmp_path)


def test_options_are_not_abbreviated(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    assert call(checkpoint, images, tmp_path / "out", "--overwrit") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert call(checkpoint, images, tmp_path / "out", "--device", "cpu") == 2
    finally:
        tmp_path.chmod(0o700)


def test_overwrite_replaces_predictions_once_the_new_ones_are_there(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = [checkpoint, images / "b.png", out, "--device", "cpu", "--overwrite"]
    out.mkdir()
    assert call(*arguments, "--no-pictures") == 0  # an empty folder needs no leave
    (out / "pictures").mkdir()
    (out / "pictures" / "b.png").touch()
    before, inode = files(out), out.stat().st_ino

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prediction_folder, "_save", failing)
        assert call(*arguments) == 2
    assert files(out) == before
    assert not leftovers(tmp_path)
    assert call(*arguments) == 0
    assert files(out) == ["detections.json", "images.json", "pictures/b.png"]
    assert (out / "pictures" / "b.png").stat().st_size
    assert out.stat().st_ino == inode  # a mounted folder cannot be replaced
    assert not leftovers(tmp_path)


def test_what_appears_in_the_meantime_is_kept(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appearing(*_: Any) -> str:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        return ""

    monkeypatch.setattr(prediction_folder, "_images_json", appearing)
    assert call(checkpoint, images / "b.png", tmp_path / "out", "--device", "cpu") == 2
    assert files(tmp_path / "out") == ["mine"]
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("was_there", [False, True])
def test_of_two_predictions_into_one_folder_the_first_to_end_stays(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    was_there: bool,
) -> None:
    out, original, calls = tmp_path / "out", prediction_folder._images_json, []
    arguments = [checkpoint, images / "b.png", out, "--device", "cpu", "--no-pictures"]
    if was_there:
        out.mkdir()

    def overtaken(*given: Any) -> str:
        calls.append(given)
        if len(calls) == 1:
            assert call(*arguments) == 0
        return original(*given)

    monkeypatch.setattr(prediction_folder, "_images_json", overtaken)
    assert call(*arguments) == 2
    assert f"{out} already holds predictions; pass another folder" in capsys.readouterr().err
    assert files(out) == ["detections.json", "images.json"]
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("error", "options", "cures"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation"),
            ["--batch-size", "4", "--figures"],
            "lower --batch-size 4, pass --precision bf16-mixed, leave out --figures, pass --device cpu or ",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            ["--precision", "bf16-mixed"],
            "",
        ),
        (MemoryError(), [], "pass --precision bf16-mixed or "),
    ],
    ids=["cuda", "cpu", "numpy"],
)
def test_out_of_memory_says_what_to_do(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    options: list[str],
    cures: str,
) -> None:
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(srtod.Predictor, "detect", failing)
    reason = str(error).partition("\n")[0] or "MemoryError"
    end = call(checkpoint, images, tmp_path / "out", "--device", "cpu", *options)
    assert end == f"error: not enough memory ({reason}); {cures}{CUT}"
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_other_errors_are_shown_in_full(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(srtod.Predictor, "detect", failing)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        call(checkpoint, images, tmp_path / "out", "--device", "cpu")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_in_the_middle_it_leaves_nothing_that_looks_finished(
    checkpoint: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(500):
        Image.new("RGB", (256, 256)).save(tmp_path / "images" / f"{number}.png")
    command = [sys.executable, "-m", "srtod.predict", checkpoint, "images", "out", "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*.part/pictures/*.png")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(kind)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (-kind if kind == signal.SIGKILL else 128 + kind), error
    assert not (tmp_path / "out").exists()
    if kind != signal.SIGKILL:
        assert not leftovers(tmp_path)
        assert error.endswith(f"interrupted; {tmp_path / 'out'} is as it was\n")
