"""The data module: what is loaded, in which order, and what it refuses."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from srtod.data import SwarmDataset
from srtod.engine import DataConfig, DetectionData, ModelConfig
from srtod.engine.data import object_sizes, objects_per_image
from srtod.models import DetectionTransform

SWARM = DataConfig(swarm_images=6, swarm_size=128, batch_size=2)


def epoch(data: DetectionData, number: int) -> list[tuple[int, Tensor]]:
    """Image ids and pixels of an epoch, in the order they come."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [(target["image_id"], image) for batch in loader for image, target in zip(*batch, strict=True)]


def equal(first: list[tuple[int, Tensor]], second: list[tuple[int, Tensor]]) -> bool:
    return [i for i, _ in first] == [i for i, _ in second] and all(
        torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True)
    )


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    """A COCO set of one image, written to `tmp_path`."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 12, 12], "area": 144, "iscrowd": 0}
        ],
        "categories": [{"id": 7, "name": "car"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    return content


def test_order_and_augmentation_follow_from_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = epoch(DetectionData(SWARM, seed=5), 3)
    torch.manual_seed(2)
    assert equal(epoch(DetectionData(SWARM, seed=5), 3), first)
    assert sorted(image_id for image_id, _ in first) == [1, 2, 3, 4, 5, 6]


def test_to_load_an_image_leaves_every_generator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(seed: int) -> None:
        raise AssertionError("the generators of the GPUs are seeded anew")

    options = replace(SWARM, scale_jitter=(0.8, 1.25), crop=96, photometric=1.0, copy_paste=3)
    data, python, numpy = DetectionData(options, seed=5), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refused)
    state = torch.get_rng_state()
    first = [data.train_dataloader().dataset[0, 7] for _ in range(2)]
    assert torch.equal(first[0][0], first[1][0])
    assert torch.equal(torch.get_rng_state(), state)
    # All that is drawn comes from torch's generator: these two are not moved, and not seeded either.
    assert random.getstate() == python
    assert np.random.get_state()[1].tolist() == numpy  # noqa: NPY002


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_memory_is_pinned_for_cuda_alone(kind: str) -> None:
    data, place = DetectionData(SWARM, seed=5), SimpleNamespace(root_device=torch.device(kind))
    loop = SimpleNamespace(restarting=False)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=place, global_rank=0, world_size=1, current_epoch=0, fit_loop=loop
    )
    assert data.train_dataloader().pin_memory == data.val_dataloader().pin_memory == (kind == "cuda")


def test_workers_change_nothing() -> None:
    with_worker = DataConfig(swarm_images=6, swarm_size=128, batch_size=2, workers=1)
    assert equal(epoch(DetectionData(with_worker, seed=5), 0), epoch(DetectionData(SWARM, seed=5), 0))


def test_epochs_and_seeds_differ() -> None:
    data = DetectionData(SWARM, seed=5)
    assert not equal(epoch(data, 0), epoch(data, 1))
    assert not equal(epoch(data, 0), epoch(DetectionData(SWARM, seed=6), 0))


def test_loading_leaves_the_random_generator_alone() -> None:
    data = DetectionData(SWARM, seed=5)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for position, seed in data.train_dataloader().sampler:
        data.train_dataloader().dataset[position, seed]
    assert torch.equal(torch.rand(1), expected)


def test_the_swarm_is_split_into_different_images() -> None:
    data = DetectionData(SWARM, seed=0)
    assert (len(data.train_set), len(data.test_set)) == (6, 1)
    assert not torch.equal(data.train_set[0][0], data.test_set[0][0])


def test_coco_files(coco: dict[str, Any], tmp_path: Path) -> None:
    files = DataConfig(
        train_json=str(tmp_path / "train.json"), train_images=str(tmp_path), test_json=str(tmp_path / "train.json")
    )
    data = DetectionData(files, seed=0)
    assert data.train_set.category_ids == [7]
    assert data.name == tmp_path.name


def test_a_single_class_is_that_of_all_objects(coco: dict[str, Any], tmp_path: Path) -> None:
    coco["categories"].append({"id": 9, "name": "bus"})
    box = coco["annotations"][0]
    coco["annotations"] += [{**box, "id": 2, "category_id": 9, "bbox": [40, 40, 9, 9]}]
    coco["annotations"] += [  # an ignore region is annotated for each class
        {**box, "id": number, "category_id": category, "bbox": [0, 0, 9, 9], "iscrowd": 1}
        for number, category in ((3, 7), (4, 9))
    ]
    (tmp_path / "train.json").write_text(json.dumps(coco))
    file = str(tmp_path / "train.json")
    config = DataConfig(train_json=file, train_images=str(tmp_path), test_json=file, single_class=True, train_subset=1)
    data = DetectionData(config, seed=0)
    assert (data.train_set.class_names, data.test_set.class_names) == (["object"], ["object"])
    assert data.train_set[0][1]["labels"].tolist() == [1, 1]
    truth = data.test_set.ground_truth
    assert truth["categories"] == [{"id": 1, "name": "object"}]
    assert [(entry["id"], entry["category_id"]) for entry in truth["annotations"]] == [(1, 1), (2, 1), (3, 1)]
    assert [entry["category_id"] for entry in coco["annotations"]] == [7, 9, 7, 9]


def test_sets_of_different_categories_are_refused(coco: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps(coco | {"categories": [{"id": 7, "name": "bus"}]}))
    with pytest.raises(ValueError, match=r"must list the same categories, got \{7: 'car'\} and \{7: 'bus'\}"):
        DetectionData(
            DataConfig(
                train_json=str(tmp_path / "train.json"),
                train_images=str(tmp_path),
                test_json=str(tmp_path / "test.json"),
            ),
            seed=0,
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(train_json="a.json"), "train_json needs train_images beside it"),
        (DataConfig(train_json="a.json", train_images="."), "train_json needs test_json beside it"),
    ],
)
def test_incomplete_options_are_refused(config: DataConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionData(config, seed=0)


def test_a_folder_with_trainval_alone_needs_no_split(coco: dict[str, Any], tmp_path: Path) -> None:
    for split in ("trainval", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(coco))
    (tmp_path / "train.json").unlink()
    assert len(DetectionData(DataConfig(data=str(tmp_path)), seed=0).train_set) == 1
    with pytest.raises(ValueError, match="has no split train; it has trainval, test"):
        DetectionData(DataConfig(data=str(tmp_path), train_split="train"), seed=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 1.5}, {"scale": 4.0, "max_size": 300}, {"min_size": (160,)}, {"min_size": (640,), "max_size": 700}],
)
def test_object_sizes_are_those_the_detector_works_at(options: dict[str, Any]) -> None:
    data = SwarmDataset(2, (128, 192))
    model = ModelConfig(**options)
    transform = DetectionTransform(model.min_size, model.max_size, scale=model.scale)
    images, targets = zip(*data, strict=True)
    _, _, resized = transform(images, targets)
    assert resized is not None
    boxes = torch.cat([target["boxes"] for target in resized])
    sizes = object_sizes(data.ground_truth, model)
    torch.testing.assert_close(sizes.float(), boxes[:, 2:] - boxes[:, :2], rtol=0.01, atol=1e-3)  # whole pixels


def test_objects_are_counted_without_crowds_and_empty_boxes(coco: dict[str, Any]) -> None:
    box = coco["annotations"][0]
    coco["images"].append({"id": 2, "file_name": "b.png", "width": 64, "height": 64})
    coco["annotations"] += [box | {"iscrowd": 1}, box | {"bbox": [3, 3, 0, 5]}, box | {"bbox": [3, 3, 4, 5]}]
    assert objects_per_image(coco) == [2, 0]
    assert object_sizes(coco, ModelConfig(scale=2.0)).tolist() == [[24, 24], [8, 10]]


@pytest.mark.parametrize("how", ["folder", "files"])
def test_images_outside_their_folder_need_an_option(coco: dict[str, Any], tmp_path: Path, how: str) -> None:
    coco["images"][0]["file_name"] = "../a.png"
    (tmp_path / "in/images").mkdir(parents=True)
    (tmp_path / "a.png").rename(tmp_path / "in/a.png")
    for split in ("train", "test"):
        (tmp_path / f"in/{split}.json").write_text(json.dumps(coco))
    files = {"train_json": "in/train.json", "train_images": "in/images", "test_json": "in/test.json"}
    given = {"data": "in"} if how == "folder" else files
    given = {name: str(tmp_path / path) for name, path in given.items()}
    with pytest.raises(
        ValueError, match=r"train.json: images\[0\]: file_name '../a.png' leads out of the image folder"
    ):
        DetectionData(DataConfig(**given), seed=0)
    assert len(DetectionData(DataConfig(**given, allow_outside=True), seed=0).train_set) == 1
