"""From a list of images to the batch a detector works on, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

__all__ = ["DetectionTransform"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SMALLEST_SIDE = 1e-3
"""In pixels; as for proposals in torchvision. float32 coordinates of 10,000 px are as far apart."""


class DetectionTransform(GeneralizedRCNNTransform):
    """Resizes, normalises and pads images; keeps the un-normalised batch too, which self-reconstruction aims at.

    Args:
        min_size: length of an image's shorter side after resizing, in pixels, the aspect ratio kept. Of several lengths
            one is drawn at random in training and the last is used otherwise. None: the image's own size times `scale`.
        max_size: the longer side is never resized beyond this; None for no limit.
        scale: factor on the image's own size where `min_size` is None.
        image_mean: mean of each channel, in [0, 1].
        image_std: standard deviation of each channel, in [0, 1].
        size_divisible: the batch is padded to multiples of this.
        copies: how often the batch holds every image in training, all images once before any comes again: for
            backbones with branches.

    Raises:
        ValueError: if a size or the scale is not positive, or `scale` is given together with `min_size`.
    """

    def __init__(
        self,
        min_size: int | Sequence[int] | None = 800,
        max_size: int | None = 1333,
        *,
        scale: float = 1.0,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        size_divisible: int = 32,
        copies: int = 1,
    ) -> None:
        sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size or ())
        limit = float("inf") if max_size is None else max_size
        if min(*sizes, limit, scale) <= 0:
            raise ValueError(f"min_size, max_size and scale must be positive, got {min_size}, {max_size} and {scale}")
        if sizes and scale != 1:
            raise ValueError(f"scale={scale} works on the images' own size; use it with min_size=None, got {min_size}")
        super().__init__(sizes, limit, list(image_mean), list(image_std), size_divisible=size_divisible)
        self.scale = scale
        self.copies = copies

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, Tensor, list[dict[str, Tensor]] | None]:
        """Makes a batch.

        Args:
            images: RGB images `[3, h, w]` in [0, 1].
            targets: one dictionary an image with `boxes` `[M, 4]` in pixels and `labels` `[M]`, and perhaps `ignore`
                `[K, 4]`; or None. Not modified.

        Returns:
            The normalised batch with the sizes of its images, `image [N, 3, H, W]`: the same batch un-normalised, in
            [0, 1], and the resized targets, see `resize`. Padding is 0 in both batches. In training N is the number of
            images times `copies`.
        """
        copies = self.copies if self.training else 1
        resized: list[Tensor] = []
        resized_targets: list[dict[str, Tensor]] = []
        for index, image in enumerate(images):
            image, target = self.resize(image, None if targets is None else targets[index])
            resized.append(image)
            if target is not None:
                resized_targets.append(target)
        resized, resized_targets = resized * copies, resized_targets * copies
        batch = ImageList(
            self.batch_images([self.normalize(image) for image in resized], self.size_divisible),
            [(image.shape[-2], image.shape[-1]) for image in resized],
        )
        return batch, self.batch_images(resized, self.size_divisible), None if targets is None else resized_targets

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resizes an image `[3, h, w]`, and the boxes and ignore regions of its target.

        Objects with a side of less than a thousandth of a pixel afterwards are left out, as nothing can be learnt from
        them and the logarithm of a side of 0 is infinite; all larger ones stay, however tiny.
        """
        shorter, longer = sorted(image.shape[-2:])
        is_strip = longer >= self.max_size * shorter  # whose shorter side torchvision would leave no pixel
        resized = super().resize(image)[0] if self.min_size and not is_strip else self._rescale(image)
        if target is None:
            return resized, None
        old, new = image.shape[-2:], resized.shape[-2:]
        boxes = resize_boxes(target["boxes"], old, new)
        kept = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_SIDE).all(dim=1)
        target = target | {"boxes": boxes[kept], "labels": target["labels"][kept]}
        if "ignore" in target:
            target["ignore"] = resize_boxes(target["ignore"], old, new)
        return resized, target

    def _rescale(self, image: Tensor) -> Tensor:
        """An image `[3, h, w]` at `scale` times its own size, or less where `max_size` says so; at least a pixel."""
        factor = min(self.scale, self.max_size / max(image.shape[-2:]))
        if factor == 1:
            return image
        size = [max(1, int(factor * side)) for side in image.shape[-2:]]
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
