"""A folder of predictions: what it holds, and that it is there whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from srtod._support.folders import is_leftover, replacing_folder
from srtod._support.signals import deferred
from srtod._version import __version__
from srtod.data.coco import name_some
from srtod.data.image import ImageError, read_image
from srtod.evaluation import Outcomes, coco_results, outcomes
from srtod.visualization import draw_detections, reconstruction_figure

from .detections import CSV_COLUMNS
from .images import ImageList
from .predictor import Predictor, batches
from .video import Frame, Video, VideoError, VideoWriter, is_stream

__all__ = ["Predicted", "predict_folder", "predict_video", "predicted_names"]

DETECTIONS, IMAGES, PICTURES, FIGURES = "detections.json", "images.json", "pictures", "figures"
TABLE, VIDEO = "detections.csv", "video.mp4"  # of a video
CONTENT = (DETECTIONS, IMAGES, PICTURES, FIGURES, TABLE, VIDEO)
"""All that a folder of predictions holds."""

BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading an `images.json` that others wrote may end in."""

DESCRIPTION = "images that srtod"
"""How the description in `images.json` begins."""


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
    score: float | None = None,
    skip_bad_images: bool = False,
    overwrite: bool = False,
) -> Predicted:
    """Finds objects in images and writes a folder of what was found, with a progress bar.

        detections.json   COCO results
        images.json       the images and categories that their ids stand for, as a COCO file without annotations
        pictures/         each image with its detections, see `srtod.visualization.draw_detections`; where `images` has
                          annotations, hits, false alarms and missed objects are told apart
        figures/          the way from each image to its enhanced features, see `reconstruction_figure`

    It is there when it is complete: after an error or Ctrl-C there is what was there before, see `replacing_folder`.
    One batch of images is held at a time.

    Args:
        predictor: the detector.
        images: what to look at.
        out: the folder.
        pictures: whether to draw pictures.
        figures: whether to draw figures.
        score: detections must score at least this to be drawn; None: the predictor's `drawn_from`. detections.json has
            them all.
        skip_bad_images: whether images that cannot be decoded are left out and counted; otherwise the first one ends
            it all.
        overwrite: whether predictions that are already there are replaced.

    Raises:
        FileExistsError: if `out` is a file, or holds predictions without `overwrite`, or anything else.
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
    score = predictor.drawn_from if score is None else score
    shown: list[dict[str, Any]] = []
    skipped: list[str] = []
    found = 0
    with (
        replacing_folder(out, CONTENT) as folder,
        (folder / DETECTIONS).open("w", encoding="utf-8") as file,
        tqdm(total=len(images.entries), unit="image") as progress,
    ):
        file.write("[")
        samples = _samples(images, skipped if skip_bad_images else None, predictor.intensity_range)
        for batch in batches(samples, predictor.batch_size, lambda sample: sample[0].shape):
            results = predictor.detect([image for image, _ in batch])
            for (image, entry), detections in zip(batch, results, strict=True):
                entries = coco_results(detections, entry["id"], predictor.category_ids)
                for result in entries:
                    file.write(f"{',' if found else ''}\n{json.dumps(result)}")
                    found += 1
                png = pngs[entry["file_name"]]
                if pictures:
                    judged = _judged(images, entry, entries, score)
                    picture = draw_detections(image, detections, predictor.class_names, score=score, outcomes=judged)
                    _save(picture, folder / PICTURES / png)
                if figures:
                    _save(reconstruction_figure(predictor.reconstruct(image)), folder / FIGURES / png)
                shown.append({**entry, "width": image.shape[2], "height": image.shape[1]})
            progress.update(len(shown) + len(skipped) - progress.n)
        file.write("\n]\n")
        if not shown:
            raise ValueError(
                f"none of the {len(skipped)} images can be read, the first of them {name_some(skipped[:1])}"
            )
        (folder / IMAGES).write_text(_images_json(predictor, shown, skipped), encoding="utf-8")
        _check_replaceable(out, overwrite)  # much may have happened there in the meantime
    return Predicted(len(shown), found, skipped)


def predict_video(
    predictor: Predictor,
    video: Video,
    out: str | Path,
    *,
    pictures: bool = True,
    score: float | None = None,
    overwrite: bool = False,
) -> Predicted:
    """Finds objects in the frames of a video and writes a folder of what was found, with a progress bar.

        detections.json   COCO results
        images.json       the frames that their ids stand for, with `frame_id`, from 0, and `time` in seconds
        detections.csv    a line an object: frame, time, class, score, and the box's corners
        video.mp4         the frames with their detections, see `srtod.visualization.draw_detections`

    It is there when it is complete, as that of `predict_folder`, with one exception. After the first Ctrl-C, SIGTERM or
    SIGHUP the frames that were read are finished, and the folder holds all until then; after the second there is what
    was there before. One batch of frames is held at a time.

    Args:
        predictor: the detector.
        video: what to look at; `video.lost` and `video.damaged` say afterwards whether there was more.
        out: the folder.
        pictures: whether to write video.mp4.
        score: detections must score at least this to be drawn; None: the predictor's `drawn_from`. The other files have
            them all.
        overwrite: whether predictions that are already there are replaced.

    Raises:
        FileExistsError: if `out` is a file, or holds predictions without `overwrite`, or anything else.
        KeyboardInterrupt: after a signal; says whether there is a folder.
        OSError: if `out` cannot be written.
        ValueError: if no frame can be decoded.
    """
    out = Path(out)
    _check_replaceable(out, overwrite)
    score = predictor.drawn_from if score is None else score
    done: Predicted | None = None
    try:
        with deferred(video.stop):
            with replacing_folder(out, CONTENT) as folder:
                written = _write_video(predictor, video, folder, score if pictures else None)
                _check_replaceable(out, overwrite)
            done = written
    except KeyboardInterrupt as error:
        if done is None:
            raise KeyboardInterrupt(str(error) or f"interrupted; {out} is as it was") from None
        raise KeyboardInterrupt(f"interrupted; {out} holds the {done.images} frames until then") from None
    return done


def _write_video(predictor: Predictor, video: Video, folder: Path, score: float | None) -> Predicted:
    """Fills a folder; without the annotated video if `score` is None."""
    frames: deque[Frame] = deque()  # those whose detections are to come

    def pixels() -> Iterator[np.ndarray[Any, Any]]:
        for frame in video:
            frames.append(frame)
            yield frame.pixels

    images = found = 0
    with ExitStack() as stack:
        results, listed, lines = (
            stack.enter_context((folder / name).open("w", encoding="utf-8")) for name in (DETECTIONS, IMAGES, TABLE)
        )
        film = None if score is None else stack.enter_context(VideoWriter(folder / VIDEO, video.rate / video.every))
        progress = stack.enter_context(tqdm(total=video.frames, unit="frame"))
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(("frame", "time", *CSV_COLUMNS[1:]))
        results.write("[")
        name = video.name if is_stream(video.name) else Path(video.name).name
        about = {"video": name, "frame_rate": float(video.rate), "every": video.every}
        listed.write(json.dumps(_about(predictor, **about))[:-1] + ', "annotations": [], "images": [')
        for detections in predictor.stream(pixels(), colour="rgb"):
            frame = frames.popleft()
            images += 1
            (height, width), seconds = detections.size, round(frame.time, 6)
            entry = {"id": images, "file_name": f"{name}#{frame.number}", "frame_id": frame.number}
            entry |= {"time": seconds, "width": width, "height": height}
            listed.write(f"{',' if images > 1 else ''}\n{json.dumps(entry)}")
            for result in detections.to_coco(images):
                results.write(f"{',' if found else ''}\n{json.dumps(result)}")
                found += 1
            table.writerows([frame.number, seconds, *row[1:]] for row in detections.csv_rows())
            if film is not None:
                film.write(detections.draw(score), frame.time)
            progress.update()
        if not images:
            raise VideoError(f"{video.name} holds no frame that can be decoded; {video.lost or 'replace it'}")
        results.write("\n]\n")
        listed.write("\n]}\n")
    return Predicted(images, found, [])


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """Checks that there is nothing in the place of a folder, or only what this module wrote, to be overwritten."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file; pass the path of a folder that is to be made")
    content = set(_content(out))
    others = content - _predictions(out) if {DETECTIONS, IMAGES} <= content else content
    if others:
        raise FileExistsError(
            f"{out} holds other things than predictions ({name_some(sorted(others))}); pass a new folder"
        )
    if content and not overwrite:
        raise FileExistsError(f"{out} already holds predictions; pass another folder, or set overwrite to replace them")


def _content(folder: Path) -> Iterator[str]:
    """What a folder holds, with what its subfolders hold; without what is not complete."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        if here == folder:
            folders[:] = [name for name in folders if not is_leftover(here / name)]
        links = [name for name in folders if (here / name).is_symlink()]
        empty = [] if here == folder or folders or names else ["."]
        yield from ((here / name).relative_to(folder).as_posix() for name in (*names, *links, *empty))


def _predictions(folder: Path) -> set[str]:
    """The files that a folder of predictions can have, by its `images.json`; none if this module did not write that."""
    try:
        listed = _listed(folder)
        if "video" in listed["info"]:
            return {DETECTIONS, IMAGES, TABLE, VIDEO}
        pngs = _picture_names([entry["file_name"] for entry in listed["images"]] + listed["info"]["skipped"]).values()
    except BROKEN:
        return set()
    return {DETECTIONS, IMAGES} | {f"{kind}/{png}" for kind in (PICTURES, FIGURES) for png in pngs}


def predicted_names(detections: str | Path) -> dict[int, str]:
    """The file name of each image by its id, for the `detections.json` of a folder of predictions; else nothing."""
    try:
        return {entry["id"]: entry["file_name"] for entry in _listed(Path(detections).parent)["images"]}
    except BROKEN:
        return {}


def _listed(folder: Path) -> Any:
    """What `images.json` holds, or one of `BROKEN` if this module did not write it."""
    listed = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
    if not listed["info"]["description"].startswith(DESCRIPTION):
        raise ValueError("written by others")
    return listed


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


def _samples(
    images: ImageList, skipped: list[str] | None, intensity_range: tuple[float, float] | None
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Each image `[3, H, W]` with its entry; names of images that cannot be decoded are added to `skipped`."""
    for entry in images.entries:
        path = images.folder / entry["file_name"]
        try:
            image = read_image(path, intensity_range)
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


def _judged(images: ImageList, entry: dict[str, Any], results: list[dict[str, Any]], score: float) -> Outcomes | None:
    """What became of an image's objects and detections; None without annotations."""
    if not images.annotations:
        return None
    own = {"images": [entry], "annotations": images.annotations.get(entry["id"], []), "categories": images.categories}
    return outcomes(own, results, score=score)[entry["id"]]


def _picture_names(names: Iterable[str]) -> dict[str, str]:
    """The name of each image's picture, which no other one has.

    It is `a/b.png` for `a/b.jpg`, but `a/b.jpg.png` where there is `a/b.tif` too. Where an image has that name, it is
    `a/b.jpg-2.png`.
    """
    paths = {name: Path(*(part for part in Path(name).parts if part not in ("/", ".."))) for name in sorted(names)}
    stems = Counter(path.with_suffix("") for path in paths.values())
    taken = {folder for path in paths.values() for folder in path.parents}
    pictures: dict[str, str] = {}
    for name, path in paths.items():
        picture = Path(f"{path}.png") if stems[path.with_suffix("")] > 1 else path.with_suffix(".png")
        number = 2
        while picture in taken:
            picture, number = Path(f"{path}-{number}.png"), number + 1
        taken.add(picture)
        pictures[name] = picture.as_posix()
    return pictures


def _save(picture: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=1)  # several times faster than the default and hardly larger


def _images_json(predictor: Predictor, shown: list[dict[str, Any]], skipped: list[str]) -> str:
    return json.dumps({**_about(predictor, skipped=skipped), "images": shown, "annotations": []}, indent=1) + "\n"


def _about(predictor: Predictor, **info: Any) -> dict[str, Any]:
    """What `images.json` says beside the images."""
    categories = [
        {"id": category, "name": name}
        for category, name in zip(predictor.category_ids, predictor.class_names, strict=True)
    ]
    return {"info": {"description": f"{DESCRIPTION} {__version__} found objects in", **info}, "categories": categories}
