"""Images of more than 8 bits: the range that is fitted to them, and that all read them by it."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import srtod
from srtod._support.options import parse_options
from srtod.data import ImageError, read_image
from srtod.data.image import fit_intensity_range
from srtod.engine import DataConfig, DetectionData, DetectionModule, TrainConfig
from srtod.models.checkpoint import load_detector, read_checkpoint, write_checkpoint

RAMP = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)  # 0 to 1999
SENSOR = 7000 + RAMP  # of 14 bits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A COCO folder of a training and a test image of 14 bits in 16, as PNG and TIFF, with an object each."""
    data = tmp_path / "heat"
    (data / "images").mkdir(parents=True)
    for split, name in (("train", "a.png"), ("test", "b.tif")):
        Image.fromarray(SENSOR).save(data / "images" / name)
        content: dict[str, Any] = {
            "images": [{"id": 1, "file_name": name, "width": 50, "height": 40}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 8, 8], "iscrowd": 0}],
            "categories": [{"id": 1, "name": "drone"}],
        }
        (data / f"{split}.json").write_text(json.dumps(content))
    return data


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_low_is_black_and_high_is_white(tmp_path: Path, name: str) -> None:
    Image.fromarray(SENSOR).save(tmp_path / name)
    image = read_image(tmp_path / name, (7500, 8500))
    expected = torch.from_numpy((RAMP.astype(np.float64) - 500) / 1000).clamp(0, 1).float()
    assert image.dtype == torch.float32
    assert torch.equal(image, expected.expand(3, -1, -1))
    assert float(read_image(tmp_path / name).amax()) == pytest.approx(8999 / 65535)


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    for mode in ("L", "RGB", "P"):
        Image.effect_noise((50, 40), 50).convert(mode).save(tmp_path / "a.png")
        assert torch.equal(read_image(tmp_path / "a.png", (50, 100)), read_image(tmp_path / "a.png"))
    assert fit_intensity_range([tmp_path / "a.png"]) is None


def test_floating_point_is_read_by_a_range_alone(tmp_path: Path) -> None:
    values = np.linspace(250, 310, 2000, dtype=np.float32).reshape(40, 50)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="floating-point pixels have no known range without an intensity_range"):
        read_image(tmp_path / "a.tif")
    low, high = fit_intensity_range([tmp_path / "a.tif"]) or (0, 0)
    assert (low, high) == pytest.approx((250.06, 309.94), abs=0.05)
    image = read_image(tmp_path / "a.tif", (low, high))
    assert (float(image[0, 0, 0]), float(image[0, 0, 1]), float(image[0, -1, -1])) == (0, 0, 1)


def test_the_range_is_the_percentiles_of_the_16_bit_images(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    Image.fromarray(RAMP + 2000).save(tmp_path / "b.tif")
    Image.effect_noise((50, 40), 50).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(b"no image")
    files = [tmp_path / name for name in ("a.png", "b.tif", "c.png", "d.png")]
    assert fit_intensity_range(files) == pytest.approx((3.999, 3995.001))
    assert fit_intensity_range(files, most=1) == pytest.approx((1.999, 1997.001))
    Image.new("I;16", (50, 40), 7).save(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match="the images have one grey level, 7, to which no intensity_range can be fitted"
    ):
        fit_intensity_range(files[:1])


@pytest.mark.parametrize(
    ("asked", "expected"), [("auto", (7001.999, 8997.001)), ((0.0, 16383.0), (0.0, 16383.0)), (None, None)]
)
def test_training_and_test_images_have_one_range(folder: Path, asked: Any, expected: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = DetectionData(DataConfig(data=str(folder), intensity_range=asked, train_subset=1), 0)
    dark = [str(warning.message) for warning in caught if "come out dark; set intensity_range" in str(warning.message)]
    assert len(dark) == (asked is None)
    assert data.intensity_range == (expected if expected is None else pytest.approx(expected))
    whole = read_image(folder / "images" / "b.tif", data.intensity_range)
    assert torch.equal(torch.as_tensor(data.test_set[0][0]), whole)
    train = torch.as_tensor(data.train_set[0][0])
    assert torch.equal(train, whole) or torch.equal(train, whole.flip(-1))


def test_a_checkpoint_keeps_the_range_and_prediction_takes_it(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=DataConfig(data=str(folder), intensity_range="auto"))
    data = DetectionData(config.data, 0)
    module = DetectionModule(config, ["drone"], [1])
    module._trainer = type("", (), {"estimated_stepping_batches": 1, "datamodule": data})()  # type: ignore[assignment]
    module.on_train_start()
    saved: dict[str, Any] = {}
    module.on_save_checkpoint(saved)
    description = read_checkpoint(checkpoint)["srtod"] | {"intensity_range": saved["srtod"]["intensity_range"]}
    write_checkpoint(read_checkpoint(checkpoint) | {"srtod": description}, tmp_path / "a.ckpt")
    assert load_detector(tmp_path / "a.ckpt").intensity_range == data.intensity_range
    assert load_detector(checkpoint).intensity_range is None
    path = folder / "images" / "b.tif"
    image = read_image(path, data.intensity_range)
    for slicing in (None, 32):
        predictor = srtod.Predictor(tmp_path / "a.ckpt", "cpu", slicing=slicing)
        expected = predictor(image)
        for form in (path, Image.open(path), SENSOR, np.stack([SENSOR] * 3, axis=2)):
            found = predictor(form, colour="bgr")
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert len(expected["scores"]) > 0


def test_the_option_takes_a_word_or_two_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    for given, value in ((["auto"], "auto"), (["none"], None), (["0", "16383"], (0.0, 16383.0))):
        assert parse_options(DataConfig, ["--intensity-range", *given]).intensity_range == value
    with pytest.raises(SystemExit):
        parse_options(DataConfig, ["--intensity-range", "auto", "3"])
    assert "auto stands alone, without numbers" in capsys.readouterr().err
    for wrong in ((3.0,), (5.0, 5.0), (5.0, 3.0), (1.0, 2.0, 3.0)):
        with pytest.raises(
            ValueError,
            match=re.escape(f"intensity_range must be a low and a higher value, such as 0 16383, got {wrong}"),
        ):
            DataConfig(intensity_range=wrong)
