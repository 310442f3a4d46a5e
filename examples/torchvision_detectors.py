"""Self-reconstruction in torchvision's own detectors: trains one for a few steps on two generated images.

    python examples/torchvision_detectors.py
    python examples/torchvision_detectors.py --model retinanet --steps 10

Everything but `ReconstructingTransform`, `ReconstructingBackbone` and `add_self_reconstruction` is an ordinary training
loop. docs/plug_in.md tells how to do the same in other detectors.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from srtod.data import SwarmDataset, collate
from srtod.models import DetectionTransform, SelfReconstruction

MODELS = {
    "faster_rcnn": (fasterrcnn_resnet50_fpn, 4),
    "retinanet": (retinanet_resnet50_fpn, 8),
}
"""torchvision's constructor, and the stride of the finest level of its pyramid in pixels: P2 or P3."""


class ReconstructingTransform(DetectionTransform):
    """torchvision's transform, which keeps the batch as it was before normalisation: the target of reconstruction."""

    def __init__(self, transform: GeneralizedRCNNTransform) -> None:
        super().__init__(
            transform.min_size,
            transform.max_size,
            image_mean=transform.image_mean,
            image_std=transform.image_std,
            size_divisible=transform.size_divisible,
        )
        self.image: Tensor | None = None  # [N, 3, H, W] in [0, 1], padding 0
        self.image_sizes: list[tuple[int, int]] = []  # (height, width) of each image without its padding

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """As torchvision's; remembers what `ReconstructingBackbone` needs."""
        batch, self.image, targets = super().forward(images, targets)
        self.image_sizes = batch.image_sizes
        return batch, targets


class ReconstructingBackbone(nn.Module):
    """A backbone with its feature pyramid, whose finest level is enhanced before anyone reads it.

    Args:
        backbone: torchvision's, which returns the levels as an ordered dictionary, the finest first.
        transform: the detector's transform.
        scale: stride of the finest level in pixels.
        options: see `SelfReconstruction`.
    """

    def __init__(self, backbone: nn.Module, transform: ReconstructingTransform, scale: int, **options: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.transform = transform
        self.out_channels = backbone.out_channels
        self.self_reconstruction = SelfReconstruction(backbone.out_channels, scale=scale, **options)
        self.loss: Tensor | None = None

    def forward(self, batch: Tensor) -> OrderedDict[str, Tensor]:
        """Maps the normalised batch `[N, 3, H, W]` to the pyramid; in training, keeps the reconstruction loss."""
        features = self.backbone(batch)
        finest = next(iter(features))
        image, image_sizes = self.transform.image, self.transform.image_sizes
        if self.training:
            features[finest], output = self.self_reconstruction(features[finest], image, image_sizes)
            self.loss = output.loss
        else:
            features[finest] = self.self_reconstruction.enhance(features[finest], image, image_sizes)
        self.transform.image = None
        return features


def add_loss(detector: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """Forward hook of the detector: the reconstruction loss joins its losses."""
    loss, detector.backbone.loss = detector.backbone.loss, None
    if detector.training:
        output["loss_reconstruction"] = loss


def add_self_reconstruction(detector: nn.Module, scale: int, **options: Any) -> nn.Module:
    """Puts self-reconstruction into a torchvision detector with a feature pyramid, in place.

    Load a checkpoint of the plain detector before: its backbone's names change from `backbone.` to `backbone.backbone.`

    Args:
        detector: such as `fasterrcnn_resnet50_fpn(...)`.
        scale: stride of the finest level of its pyramid in pixels: 4 for Faster R-CNN, 8 for RetinaNet.
        options: see `SelfReconstruction`.
    """
    detector.transform = ReconstructingTransform(detector.transform)
    detector.backbone = ReconstructingBackbone(detector.backbone, detector.transform, scale, **options)
    detector.register_forward_hook(add_loss)
    return detector


def train(model: str, steps: int, min_size: int, lr: float, **options: Any) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains a stock detector with self-reconstruction from random weights on two images.

    Args:
        model: one of `MODELS`.
        steps: number of steps.
        min_size: the images' shorter side after resizing, in pixels.
        lr: learning rate of the weights.
        options: see `SelfReconstruction`.

    Returns:
        The detector, and the losses of each step.
    """
    torch.manual_seed(0)
    constructor, scale = MODELS[model]
    detector = constructor(weights=None, weights_backbone=None, num_classes=2, min_size=min_size, max_size=2 * min_size)
    add_self_reconstruction(detector, scale, **options).train()

    data = SwarmDataset(2, size=(128, 160))
    images, targets = collate([data[index] for index in range(len(data))])

    # The threshold moves by grey levels, 1/255: it has a learning rate of its own and must not decay to zero.
    thresholds = [p for name, p in detector.named_parameters() if name.endswith("threshold")]
    weights = [p for name, p in detector.named_parameters() if not name.endswith("threshold")]
    optimizer = torch.optim.SGD(
        [
            {"params": weights, "lr": lr, "weight_decay": 1e-4},
            {"params": thresholds, "lr": 0.01 * lr, "weight_decay": 0.0},
        ],
        momentum=0.9,
    )
    history = []
    for step in range(steps):
        losses = detector(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(weights, 10.0)
        optimizer.step()
        detector.backbone.self_reconstruction.clamp_threshold_()
        history.append({name: loss.item() for name, loss in losses.items()})
        print(f"step {step}", *(f"{name} {value:.4f}" for name, value in history[-1].items()), sep="  ")
    return detector, history


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Self-reconstruction in torchvision's own detectors.")
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all", help="which detector")
    parser.add_argument("--steps", type=int, default=5, help="training steps")
    parser.add_argument("--min-size", type=int, default=128, help="shorter side of the images, in pixels")
    parser.add_argument("--lr", type=float, default=0.005, help="learning rate")
    options = parser.parse_args(arguments)
    for model in MODELS if options.model == "all" else [options.model]:
        print(model)
        train(model, options.steps, options.min_size, options.lr)


if __name__ == "__main__":
    main()
