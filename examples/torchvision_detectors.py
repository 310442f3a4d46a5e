"""Self-reconstruction in torchvision's own detectors: trains one for a few steps on generated images, and predicts.

    python examples/torchvision_detectors.py
    python examples/torchvision_detectors.py --model retinanet --steps 10

The line with `srtod.attach`, and the next one with `set_progress`, are all that self-reconstruction adds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn

import srtod
from srtod.data import SwarmDataset, collate

MODELS = {
    "faster_rcnn": (fasterrcnn_resnet50_fpn, 4),
    "retinanet": (retinanet_resnet50_fpn, 8),
}
"""torchvision's constructor, and the stride of the finest level of its pyramid in pixels: P2 or P3."""


def train(model: str, steps: int = 20, min_size: int = 128, lr: float = 0.005) -> tuple[nn.Module, list[float]]:
    """Trains a stock detector with self-reconstruction from random weights on two images.

    Args:
        model: one of `MODELS`.
        steps: number of steps.
        min_size: the images' shorter side after resizing, in pixels.
        lr: learning rate.

    Returns:
        The detector, and the reconstruction's loss at each step.
    """
    torch.manual_seed(0)
    constructor, scale = MODELS[model]
    detector = constructor(weights=None, weights_backbone=None, num_classes=2, min_size=min_size, max_size=2 * min_size)
    reconstruction = srtod.attach(detector, "backbone", key="0", scale=scale, enhancement="dgfe")

    data = SwarmDataset(2, size=(128, 160))
    images, targets = collate([data[index] for index in range(len(data))])
    optimizer = torch.optim.SGD(detector.parameters(), lr=lr, momentum=0.9)
    history = []
    detector.train()
    for step in range(steps):
        reconstruction.set_progress(step / steps)
        losses = detector(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        history.append(losses["loss_reconstruction"].item())
        print(f"step {step}", *(f"{name} {loss.item():.4f}" for name, loss in losses.items()), sep="  ")
    return detector, history


@torch.no_grad()
def predict(detector: nn.Module) -> list[dict[str, torch.Tensor]]:
    """The detections in an image that training has not seen."""
    image, _ = SwarmDataset(1, size=(128, 160), seed=1)[0]
    return detector.eval()([image])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Self-reconstruction in torchvision's own detectors.")
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all", help="which detector")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--min-size", type=int, default=128, help="shorter side of the images, in pixels")
    parser.add_argument("--lr", type=float, default=0.005, help="learning rate")
    options = parser.parse_args(arguments)
    for model in MODELS if options.model == "all" else [options.model]:
        print(model)
        detector, _ = train(model, options.steps, options.min_size, options.lr)
        print(f"{len(predict(detector)[0]['boxes'])} detections")


if __name__ == "__main__":
    main()
