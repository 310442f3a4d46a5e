"""A folder of predictions: what it holds, and that it is there whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from srtod._support.files import replacing_folder
from srtod._version import __version__
from srtod.data.coco import name_some
from srtod.data.image import ImageError, read_image
from srtod.evaluation import coco_results
from srtod.visualization import SCORE, draw_detections, reconstruction_figure

from .images import ImageList
from .predictor import Predictor, batches

__all__ = ["Predicted", "predict_folder"]

CONTENT = ("detections.json", "images.json", "pictures", "figures")
"""All that a folder of predictions holds."""


class Predicted(NamedTuple):
    """What was predicted.

    Attributes:
        images: number of images looked at.
        detections: number of objects found in them.
        skipped: images that could not be decoded.
    """

    images: int
    detections: int
    skipped: list[str]


def predict_folder(
    predictor: Predictor,
    images: ImageList,
    out: str | Path,
    *,
    pictures: bool = True,
    figures: bool = False,
    score: float = SCORE,
    skip_bad_images: bool = False,
    overwrite: bool = False,
) -> Predicted:
    """Finds objects in images and writes a folder of what was found, with a progress bar.

        detections.json   COCO results
        images.json       the images and categories that their ids stand for, as a COCO file without annotations
        pictures/         each image with its detections, see `srtod.visualization.draw_detections`
        figures/          the way from each image to its enhanced features, see `reconstruction_figure`

    The folder is made under another name beside its place and gets its own when it is complete: after an error or
    Ctrl-C there is what was there before. One batch of images is held at a time.

    Args:
        predictor: the detector.
        images: what to look at.
        out: the folder.
        pictures: whether to draw pictures.
        figures: whether to draw figures.
        score: detections must score at least this to be drawn; detections.json has them all.
        skip_bad_images: whether images that cannot be decoded are left out and counted; otherwise the first one ends
            it all.
        overwrite: whether a folder of predictions that is already there is replaced.

    Raises:
        FileExistsError: if `out` exists and is not empty, and `overwrite` is not given or it holds other things.
        OSError: if `out` cannot be written.
        ValueError: if an image cannot be decoded, or has another size than its COCO file says; if that file has other
            categories than the detector; if figures are asked of a detector without self-reconstruction.
    """
    out = Path(out)
    if figures and predictor.detector.self_reconstruction is None:
        raise ValueError("the detector was trained without self-reconstruction and has no figures; ask for none")
    _check_categories(predictor, images.categories)
    pngs = _picture_names([entry["file_name"] for entry in images.entries])
    _check_replaceable(out, overwrite)
    shown: list[dict[str, Any]] = []
    skipped: list[str] = []
    found = 0
    with (
        replacing_folder(out) as folder,
        (folder / "detections.json").open("w", encoding="utf-8") as file,
        tqdm(total=len(images.entries), unit="image") as progress,
    ):
        file.write("[")
        samples = _samples(images, skipped if skip_bad_images else None)
        for batch in batches(samples, predictor.batch_size, lambda sample: sample[0].shape):
            results = predictor.detect([image for image, _ in batch])
            for (image, entry), detections in zip(batch, results, strict=True):
                for result in coco_results(detections, entry["id"], predictor.category_ids):
                    file.write(f"{',' if found else ''}\n{json.dumps(result)}")
                    found += 1
                png = pngs[entry["file_name"]]
                if pictures:
                    picture = draw_detections(image, detections, predictor.class_names, score=score)
                    _save(picture, folder / "pictures" / png)
                if figures:
                    _save(reconstruction_figure(predictor.reconstruct(image)), folder / "figures" / png)
                shown.append({**entry, "width": image.shape[2], "height": image.shape[1]})
            progress.update(len(shown) + len(skipped) - progress.n)
        file.write("\n]\n")
        if not shown:
            raise ValueError(
                f"none of the {len(skipped)} images can be read, the first of them {name_some(skipped[:1])}"
            )
        (folder / "images.json").write_text(_images_json(predictor, shown, skipped), encoding="utf-8")
        _check_replaceable(out, overwrite)  # much may have happened there in the meantime
    return Predicted(len(shown), found, skipped)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """Checks that there is nothing in the place of a folder, or only what this module wrote, to be overwritten."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file; pass the path of a folder that is to be made")
    content = sorted(path.name for path in out.iterdir())
    others = [name for name in content if name not in CONTENT]
    if others:
        raise FileExistsError(f"{out} holds other things than predictions ({name_some(others)}); pass a new folder")
    if content and not overwrite:
        raise FileExistsError(f"{out} already holds predictions; pass another folder, or set overwrite to replace them")


def _check_categories(predictor: Predictor, categories: list[dict[str, Any]] | None) -> None:
    own = dict(zip(predictor.category_ids, predictor.class_names, strict=True))
    if categories is None:
        return
    given = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    if own.items() - given.items():
        raise ValueError(
            f"the detector's categories are not those of the COCO file: {own} and {given}; "
            f"pass the annotations of the data that it was trained for"
        )


def _samples(images: ImageList, skipped: list[str] | None) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Each image `[3, H, W]` with its entry; names of images that cannot be decoded are added to `skipped`."""
    for entry in images.entries:
        path = images.folder / entry["file_name"]
        try:
            image = read_image(path)
        except ImageError as error:
            if skipped is None:
                raise ImageError(f"{error}, or set skip_bad_images to leave such images out") from error
            skipped.append(entry["file_name"])
            continue
        height, width = image.shape[-2:]
        if (entry.get("width", width), entry.get("height", height)) != (width, height):
            raise ValueError(
                f"{path} is {width}x{height} pixels, but the COCO file says {entry['width']}x{entry['height']}; its "
                f"boxes would be misplaced, so correct the file or the annotations"
            )
        yield image, entry


def _picture_names(names: list[str]) -> dict[str, str]:
    """The name of each image's picture: `a/b.png` for `a/b.jpg`, but `a/b.jpg.png` where there is `a/b.tif` too."""
    paths = {name: Path(*(part for part in Path(name).parts if part not in ("/", ".."))) for name in names}
    stems = Counter(path.with_suffix("") for path in paths.values())
    return {
        name: f"{path}.png" if stems[path.with_suffix("")] > 1 else str(path.with_suffix(".png"))
        for name, path in paths.items()
    }


def _save(picture: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=1)  # several times faster than the default and hardly larger


def _images_json(predictor: Predictor, shown: list[dict[str, Any]], skipped: list[str]) -> str:
    categories = [
        {"id": category, "name": name}
        for category, name in zip(predictor.category_ids, predictor.class_names, strict=True)
    ]
    info = {"description": f"images that srtod {__version__} found objects in", "skipped": skipped}
    return json.dumps({"info": info, "images": shown, "annotations": [], "categories": categories}, indent=1) + "\n"
