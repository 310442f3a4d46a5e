"""`srtod.Predictor`: what it takes, and that it gives what the detector gives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

import srtod
from srtod.data import read_image
from srtod.models.checkpoint import load_detector, read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> srtod.Predictor:
    return srtod.Predictor(checkpoint, "cpu")


def pixels(height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """Noise in 8 bits, `[3, H, W]`."""
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys() == {"boxes", "labels", "scores"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(first["scores"]) > 0


def test_predictions_are_the_detectors(checkpoint: Path) -> None:
    detector = load_detector(checkpoint).detector
    images = [pixels(seed=seed) / 255 for seed in range(3)]
    predictor = srtod.Predictor(checkpoint, "cpu", batch_size=3)
    with torch.no_grad():
        expected = detector(images)
    for detections, others in zip(predictor(images), expected, strict=True):
        assert_same(detections, others)
    assert (predictor.class_names, predictor.category_ids) == (["drone", "bird"], [3, 7])
    assert predictor([]) == []


def test_one_image_gives_one_dictionary(predictor: srtod.Predictor) -> None:
    image = pixels() / 255
    [alone] = predictor([image])
    assert_same(predictor(image), alone)


def test_an_image_is_found_the_same_in_whatever_company(checkpoint: Path, predictor: srtod.Predictor) -> None:
    """Images of other sizes share no batch, so that none is padded because of another."""
    images = [pixels(48, 64) / 255, pixels(90, 70) / 255, pixels(48, 64, seed=1) / 255]
    together = srtod.Predictor(checkpoint, "cpu", batch_size=8)(images)
    for image, detections in zip(images, together, strict=True):
        assert_same(predictor(image), detections)


def test_a_path_a_picture_and_a_tensor_agree(predictor: srtod.Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    F.to_pil_image(pixels()).save(path)
    forms = [path, str(path), Image.open(path), pixels(), pixels() / 255, (pixels() / 255).double()]
    first, *others = predictor(forms)
    for other in others[:-1]:
        assert_same(first, other)
    torch.testing.assert_close(first["boxes"], others[-1]["boxes"])


@pytest.mark.parametrize("mode", ["L", "I;16", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_of_pictures_is_read_as_its_file_is(predictor: srtod.Predictor, tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray((np.arange(48 * 64).reshape(48, 64) * 20).astype(np.uint16))
    else:
        picture = F.to_pil_image(pixels()).convert(mode)
    path = tmp_path / "a.tif"
    picture.save(path)
    assert_same(predictor(path), predictor(picture))
    assert_same(predictor(path), predictor(read_image(path)))


def test_a_turned_picture_is_turned_back_as_its_file_is(predictor: srtod.Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    F.to_pil_image(pixels(48, 64)).save(tmp_path / "a.png", exif=exif)
    assert_same(predictor(tmp_path / "a.png"), predictor(Image.open(tmp_path / "a.png")))
    assert_same(predictor(tmp_path / "a.png"), predictor(pixels(48, 64).flip(1).transpose(1, 2)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (33, 2), (31, 45)])
def test_an_image_may_be_of_any_size(predictor: srtod.Predictor, tmp_path: Path, height: int, width: int) -> None:
    image = pixels(height, width)
    F.to_pil_image(image).save(tmp_path / "a.png")
    found = predictor(tmp_path / "a.png")
    assert_same(found, predictor(image))
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()
    assert predictor.reconstruct(image / 255).reconstruction.shape == (3, height, width)


def test_stream_takes_images_as_it_goes(predictor: srtod.Predictor) -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield pixels()

    stream = predictor.stream(endless())
    next(stream)
    next(stream)
    assert len(taken) == 2


def test_threshold_and_limit_replace_those_of_training(checkpoint: Path, predictor: srtod.Predictor) -> None:
    image = pixels() / 255
    everything = predictor(image)
    threshold = float(everything["scores"][4])
    fewer = srtod.Predictor(checkpoint, "cpu", score_threshold=threshold, detections_per_image=3)(image)
    assert torch.equal(fewer["scores"], everything["scores"][:3])
    more = srtod.Predictor(checkpoint, "cpu", detections_per_image=40)(image)
    assert len(more["scores"]) == 40 > len(everything["scores"])


@pytest.mark.parametrize(
    ("metrics", "score"),
    [({"AP": 0.5}, 0.5), ({"F1_threshold": -1.0}, 0.5), ({"F1_threshold": 0.0}, 0.0), ({"F1_threshold": 0.75}, 0.75)],
)
def test_detections_are_drawn_from_the_score_of_the_best_f1(
    checkpoint: Path, tmp_path: Path, metrics: dict[str, float], score: float
) -> None:
    write_checkpoint(read_checkpoint(checkpoint) | {"metrics": metrics}, tmp_path / "a.ckpt")
    predictor = srtod.Predictor(tmp_path / "a.ckpt", "cpu")
    found = predictor(pixels())
    assert predictor.drawn_from == score
    assert found.draw().tobytes() == found.above(0.0).draw().tobytes() == found.draw(score).tobytes()
    assert found.draw().tobytes() != found.draw(0.9).tobytes()  # whose title says so


def test_autocast_computes_in_half_precision(checkpoint: Path, predictor: srtod.Predictor) -> None:
    image = pixels() / 255
    half = srtod.Predictor(checkpoint, "cpu", autocast=torch.bfloat16)
    assert not torch.equal(half(image)["scores"], predictor(image)["scores"])
    torch.testing.assert_close(half(image)["scores"], predictor(image)["scores"], atol=0.02, rtol=0)
    coarse, fine = (each.reconstruct(image).reconstruction for each in (half, predictor))
    assert coarse.dtype == torch.float32  # from the logits on
    assert not torch.equal(coarse, fine)
    torch.testing.assert_close(coarse, fine, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("flags", "warned"), [(["avx2", "avx512_bf16"], False), (["bf16", "asimd"], False), (["avx2"], True)]
)
def test_a_processor_without_bfloat16_is_told(
    checkpoint: Path, flags: list[str], warned: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr("srtod.prediction.predictor.processor", lambda: ("a processor", flags))
    srtod.Predictor(checkpoint, "cpu")
    assert not recwarn.list
    srtod.Predictor(checkpoint, "cpu", autocast=torch.bfloat16)
    assert [str(warning.message)[:54] for warning in recwarn.list] == [
        "this processor has no instructions for bfloat16: detec"
    ] * warned


def test_numpy_images_have_the_order_that_is_said(predictor: srtod.Predictor) -> None:
    rgb = pixels().permute(1, 2, 0).numpy()
    expected = predictor(pixels())
    assert_same(predictor(rgb, colour="rgb"), expected)
    assert_same(predictor([rgb[:, :, ::-1]], colour="bgr")[0], expected)
    grey = rgb[:, :, 0]
    assert_same(predictor(grey, colour="bgr"), predictor(Image.fromarray(grey)))
    for wrong in (rgb.astype(np.float32), rgb[:, :, :2], rgb[0, 0], rgb[:0]):
        with pytest.raises(ValueError, match=r"images\[0\] must be uint8 or uint16 \[H, W, 3\] or \[H, W\], got"):
            predictor(wrong, colour="bgr")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_is_the_gpu_and_results_come_back(checkpoint: Path) -> None:
    predictor = srtod.Predictor(checkpoint, autocast=torch.bfloat16)
    assert predictor.device.type == "cuda"
    assert all(values.device.type == "cpu" for values in predictor(pixels()).values())


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), TypeError, "images[0] is a NumPy array, which may be RGB or OpenCV's BGR; set"),
        (3, TypeError, "images must be an image or a list of images, got int"),
        ([None], TypeError, "images[0] must be a path, a PIL image or a tensor [3, H, W], got NoneType"),
        ([pixels(), pixels().short()], TypeError, "images[1] must be a floating-point tensor"),
        ([pixels(), pixels().float()], ValueError, "images[1] must be un-normalised, with values in [0, 1]"),
        (pixels()[:1], ValueError, "images[0] must be an RGB image [3, H, W] with at least one pixel, got [1, 48, 64]"),
        (pixels()[:1], ValueError, "it looks grey: image.expand(3, -1, -1) makes it RGB"),
        (pixels()[0], ValueError, "got [48, 64]; it looks grey: image.expand(3, -1, -1) makes it RGB"),
        (pixels()[None], ValueError, "got [1, 3, 48, 64]"),
        ([Image.new("F", (4, 4))], ValueError, "images[0] cannot be read as an image (floating-point pixels"),
        ("absent.png", FileNotFoundError, "the image absent.png does not exist"),
    ],
)
def test_what_is_no_image_is_refused(
    predictor: srtod.Predictor, image: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        predictor(image)


def test_files_that_are_no_images_are_named(predictor: srtod.Predictor, tmp_path: Path) -> None:
    F.to_pil_image(pixels()).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as an image"):
        predictor([tmp_path / "a.png", tmp_path / "cut.png"])
    with pytest.raises(ValueError, match=r"images\[0\] cannot be read"):
        predictor(Image.open(tmp_path / "cut.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": "meta"}, "device 'meta' cannot be used (Cannot copy out of meta tensor"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"score_threshold": 50}, "score_threshold must be from 0 to less than 1, got 50"),
        ({"detections_per_image": 0}, "detections_per_image must be positive, got 0"),
        ({"autocast": torch.int8}, "autocast must be torch.bfloat16, torch.float16 or None"),
    ],
)
def test_bad_options(checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        srtod.Predictor(checkpoint, **options)


def test_checkpoints_that_are_none(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.ckpt is damaged or not a checkpoint"):
        srtod.Predictor(tmp_path / "cut.ckpt")
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt does not exist"):
        srtod.Predictor(tmp_path / "absent.ckpt")
    with pytest.raises(IsADirectoryError, match=r"is a folder; pass a \.ckpt file"):
        srtod.Predictor(tmp_path)


def test_predictor_is_imported_when_it_is_asked_for() -> None:
    code = (
        "import sys, srtod, srtod.ops; print('srtod.prediction' in sys.modules, 'torchvision' in sys.modules); "
        "print(srtod.Predictor.__module__, hasattr(srtod, 'Predict'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False", "srtod.prediction.predictor", "False"]
