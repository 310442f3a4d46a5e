"""Images that cannot be decoded: named, or left out, counted and listed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from srtod.engine import DataConfig, DetectionModule, ModelConfig, TrainConfig, train

pytestmark = pytest.mark.usefixtures("blank_plots")

CONFIG = TrainConfig(
    ModelConfig("retinanet", channels=16, self_reconstruction=False),
    epochs=1,
    panels=0,
    accelerator="cpu",
    threads=1,
)


def write_coco(folder: Path, name: str, broken: set[int], images: int = 6) -> None:
    """A COCO set of one object an image, of which some images cannot be decoded."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "drone"}]}
    for number in range(1, images + 1):
        file = f"{name}_{number}.png"
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(folder / file)
        if number in broken:
            (folder / file).write_bytes((folder / file).read_bytes()[:60])
        content["images"].append({"id": number, "file_name": file, "width": 64, "height": 64})
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 12, 12], "area": 144, "iscrowd": 0}
        )
    (folder / f"{name}.json").write_text(json.dumps(content))


def coco(folder: Path, **options: Any) -> DataConfig:
    return DataConfig(
        train_json=str(folder / "train.json"),
        train_images=str(folder),
        test_json=str(folder / "test.json"),
        horizontal_flip=0.0,
        **options,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_counted_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    write_coco(tmp_path, "train", broken={2, 3})
    write_coco(tmp_path, "test", broken={1, 5})
    seen: list[str] = []
    step = DetectionModule.training_step

    def recording(self: DetectionModule, batch: Any, index: int) -> Any:
        seen.extend(target["file_name"] for target in batch[1])
        return step(self, batch, index)

    monkeypatch.setattr(DetectionModule, "training_step", recording)
    data = coco(tmp_path, skip_bad_images=True, workers=workers, batch_size=1)
    with pytest.warns(UserWarning, match="cannot be decoded and are left out") as warned:
        run = train(replace(CONFIG, data=data, output=str(tmp_path / "run")))
    # The next image that can be decoded stands in for each: 4 for 2 and 3.
    assert sorted(seen) == sorted(f"train_{number}.png" for number in (1, 4, 4, 4, 5, 6))
    listed = run.folder / "unreadable_images.txt"
    assert listed.read_text() == "training: train_2.png\ntraining: train_3.png\ntest: test_1.png\ntest: test_5.png\n"
    messages = [str(warning.message) for warning in warned if "cannot be decoded" in str(warning.message)]
    assert sorted(messages) == [
        f"2 of 6 test images cannot be decoded and are left out: test_1.png, test_5.png; {listed} lists them",
        f"2 of 6 training images cannot be decoded and are left out: train_2.png, train_3.png; {listed} lists them",
    ]
    report = json.loads((run.folder / "report" / "metrics.json").read_text())
    assert report["test_set"]["images"] == report["test_set"]["objects"] == 4  # with their ground truth


def test_a_set_of_bad_images_alone_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", broken=set(range(1, 7)))
    write_coco(tmp_path, "test", broken=set())
    with pytest.raises(ValueError, match="none of the 6 training images can be read as an image; replace them"):
        train(replace(CONFIG, data=coco(tmp_path, skip_bad_images=True), output=str(tmp_path / "run")))


def test_a_bad_image_in_the_middle_of_an_evaluation_is_named(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", broken=set())
    write_coco(tmp_path, "test", broken={4})
    with pytest.raises(
        ValueError,
        match=r"test_4\.png cannot be read as an image .*, or pass --skip-bad-images to leave such images out$",
    ):
        train(replace(CONFIG, data=coco(tmp_path), output=str(tmp_path / "run")))


def test_a_bad_training_image_is_told_on_a_line_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path, "train", broken={1, 2, 3})
    write_coco(tmp_path, "test", broken=set())
    with pytest.raises(ValueError, match=r"train_\d\.png cannot be read .*, or pass --skip-bad-images"):
        train(replace(CONFIG, data=coco(tmp_path, batch_size=1), output=str(tmp_path / "run")))
    assert capfd.readouterr().out.endswith("\n")  # of the progress bar
