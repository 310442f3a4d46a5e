"""The street every detector shares: transform, backbone, neck, self-reconstruction, head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checks import check_images, check_targets
from .inspection import ImageReconstruction, reconstruct_images
from .reconstruction import SelfReconstruction
from .transform import DetectionTransform

__all__ = ["Detector"]


class Detector(nn.Module):
    """A detector with torchvision's calling convention, made of exchangeable parts.

        losses = detector(images, targets)      # training mode: a dictionary of losses, to be summed
        detections = detector(images)           # evaluation mode: one {"boxes", "labels", "scores"} an image

    Args:
        transform: makes the batch and maps detections back to the images' own pixels.
        backbone: maps the normalised batch `[N, 3, H, W]` to its feature maps.
        neck: maps those to the feature pyramid, an ordered dictionary with the finest level first.
        head: `head(batch, features, targets) -> (detections, losses)`, see `srtod.models.heads`.
        num_classes: number of classes, background included.
        self_reconstruction: enhances the finest level of the pyramid; None for the plain detector. In evaluation mode
            its `enhance` is called instead of `forward`, so forward hooks do not run.
    """

    def __init__(
        self,
        transform: DetectionTransform,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        num_classes: int,
        self_reconstruction: SelfReconstruction | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.num_classes = num_classes
        self.self_reconstruction = self_reconstruction

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Computes losses in training mode and detections otherwise.

        Args:
            images: RGB images `[3, h, w]`, floating-point values in [0, 1], not normalised; sizes may differ.
            targets: needed in training mode: one dictionary an image with `boxes` `[M, 4]`, (x1, y1, x2, y2) in pixels
                of the image, and `labels` `[M]`, int64, 1 to `num_classes - 1`. M may be 0. Optional is `ignore`
                `[K, 4]`, regions in pixels of the image where nothing is learnt as background, as crowds.

        Returns:
            In training mode the losses, `[]` each; self-reconstruction adds `loss_reconstruction`. Otherwise one
            dictionary an image, best first: `boxes` `[K, 4]` in pixels of the image, `labels` `[K]` and `scores` `[K]`
            in [0, 1].

        Raises:
            TypeError: if an image or a target has the wrong type.
            ValueError: if an image or a target has the wrong shape or values, or targets are missing in training.
        """
        check_images(images)
        if self.training:
            check_targets(targets, images, self.num_classes)
        batch, pixels, targets = self.transform(self._cast(images), targets if self.training else None)
        features = self.neck(self.backbone(batch.tensors))
        reconstruction_loss = {}
        if self.self_reconstruction is not None:
            finest = next(iter(features))
            if self.training:
                boxes = [target["boxes"] for target in targets]
                features[finest], output = self.self_reconstruction(features[finest], pixels, batch.image_sizes, boxes)
                reconstruction_loss["loss_reconstruction"] = output.loss
            else:
                features[finest] = self.self_reconstruction.enhance(features[finest], pixels, batch.image_sizes)
        detections, losses = self.head(batch, features, targets)
        if self.training:
            return losses | reconstruction_loss
        return self.transform.postprocess(detections, batch.image_sizes, [image.shape[-2:] for image in images])

    @torch.no_grad()
    def reconstruct(self, images: Sequence[Tensor]) -> list[ImageReconstruction]:
        """The self-reconstruction of each image, for pictures and logs.

        Args:
            images: as in `forward`.

        Raises:
            RuntimeError: if the detector has no self-reconstruction, or is in training mode.
            TypeError, ValueError: as `forward`.
        """
        if self.self_reconstruction is None:
            raise RuntimeError("this detector was built with self_reconstruction=False and reconstructs nothing")
        if self.training:
            raise RuntimeError("reconstruct works in evaluation mode; call eval() first")
        check_images(images)
        batch, pixels, _ = self.transform(self._cast(images))
        features = next(iter(self.neck(self.backbone(batch.tensors)).values()))
        return reconstruct_images(self.self_reconstruction, features, pixels, batch.image_sizes)

    def _cast(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The images in the detector's own dtype, whatever floating-point dtype each has."""
        dtype = next(self.parameters()).dtype
        return [image.to(dtype) for image in images]
