"""Self-reconstruction in a YOLO of Ultralytics with P2: trains one for a few steps on generated images.

    pip install ultralytics
    python examples/ultralytics_yolo.py --steps 10

Ultralytics has the licence AGPL-3.0, which reaches programs that use it. srtod does not depend on it, and no other
file of srtod imports it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression

import srtod
from srtod.data import SwarmDataset

SIZE = (128, 160)  # height and width of the images, in pixels


def batch(images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch in the form of Ultralytics: classes from 0, and boxes (cx, cy, w, h) relative to the image."""
    height, width = SIZE
    boxes = torch.cat([target["boxes"] for target in targets])
    return {
        "img": torch.stack(list(images)),
        "cls": torch.cat([target["labels"] - 1 for target in targets]).view(-1, 1).float(),
        "bboxes": box_convert(boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height]),
        "batch_idx": torch.cat([torch.full((len(t["boxes"]),), float(index)) for index, t in enumerate(targets)]),
    }


def train(steps: int = 20, lr: float = 0.002) -> tuple[nn.Module, list[float]]:
    """Trains on two images; returns the detector, and the reconstruction's loss at each step."""
    torch.manual_seed(0)
    detector = DetectionModel("yolov8n-p2.yaml", nc=1, verbose=False)
    detector.args = get_cfg()  # the weights of its losses
    # Layer 18 is the finest level of the pyramid, at stride 4. Images are not normalised.
    channels = detector.model[18].cv2.conv.out_channels
    reconstruction = srtod.attach(detector, "model.18", channels=channels, scale=4, enhancement="dgfe")

    data = SwarmDataset(2, size=SIZE)
    inputs = batch(*zip(*(data[index] for index in range(len(data))), strict=True))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr)
    history = []
    detector.train()
    for step in range(steps):
        reconstruction.set_progress(step / steps)
        losses, _ = detector(inputs)  # a tensor: its losses of boxes, classes and edges
        loss = losses.sum() + len(inputs["img"]) * reconstruction.loss  # Ultralytics' losses are sums over the images
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        history.append(reconstruction.loss.item())
        print(f"step {step}  loss {loss.item():.4f}  loss_reconstruction {history[-1]:.4f}")
    return detector, history


@torch.no_grad()
def predict(detector: nn.Module) -> list[Tensor]:
    """The detections in an image that training has not seen: rows of x1, y1, x2, y2, score and class."""
    image, _ = SwarmDataset(1, size=SIZE, seed=1)[0]
    return non_max_suppression(detector.eval()(image[None]), conf_thres=0.001)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Self-reconstruction in a YOLO of Ultralytics with P2.")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    detector, _ = train(parser.parse_args(arguments).steps)
    print(f"{len(predict(detector)[0])} detections")


if __name__ == "__main__":
    main()
