"""Self-reconstruction in an RT-DETR of `transformers`: trains a small one for a few steps on generated images.

    pip install 'srtod[detr]'
    python examples/transformers_detector.py --steps 10

Its pyramid begins at stride 4, one level finer than in the published models. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

import srtod
from srtod.data import SwarmDataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (128, 160)  # height and width of the images, in pixels


def build(channels: int = 64) -> RTDetrForObjectDetection:
    """A small RT-DETR of one class with random weights, whose pyramid has the strides 4, 8, 16 and 32."""
    widths = [32, 64, 128, 256]
    backbone = RTDetrResNetConfig(
        embedding_size=32, hidden_sizes=widths, depths=[1, 1, 1, 1], layer_type="basic", out_indices=[1, 2, 3, 4]
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=widths,
        feat_strides=[4, 8, 16, 32],
        encode_proj_layers=[3],
        encoder_hidden_dim=channels,
        encoder_ffn_dim=2 * channels,
        d_model=channels,
        decoder_in_channels=[channels] * 4,
        decoder_ffn_dim=2 * channels,
        decoder_layers=2,
        num_feature_levels=4,
        num_queries=100,  # more than there are objects in an image
        num_denoising=0,
        num_labels=1,
    )
    return RTDetrForObjectDetection(config)


def pixel_values(images: Sequence[Tensor]) -> Tensor:
    """The batch `[N, 3, H, W]` as an image processor of `transformers` makes it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.stack(list(images)) - mean) / std


def labels(targets: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Targets in the form of `transformers`: classes from 0, and boxes (cx, cy, w, h) relative to the image."""
    height, width = SIZE
    size = torch.tensor([width, height, width, height])
    return [
        {"class_labels": target["labels"] - 1, "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / size}
        for target in targets
    ]


def train(steps: int = 20, lr: float = 1e-3) -> tuple[nn.Module, list[float]]:
    """Trains on two images; returns the detector, and the reconstruction's loss at each step."""
    torch.manual_seed(0)
    detector = build()
    reconstruction = srtod.attach(
        detector, "model.encoder", key=("last_hidden_state", 0), channels=64, scale=4, mean=MEAN, std=STD
    )

    data = SwarmDataset(2, size=SIZE)
    images, targets = zip(*(data[index] for index in range(len(data))), strict=True)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr)
    history = []
    detector.train()
    for step in range(steps):
        reconstruction.set_progress(step / steps)
        output = detector(pixel_values=pixel_values(images), labels=labels(targets))
        optimizer.zero_grad()
        output.loss.backward()  # the reconstruction's loss is in it
        nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
        optimizer.step()
        history.append(output.loss_dict["loss_reconstruction"].item())
        print(f"step {step}  loss {output.loss.item():.4f}  loss_reconstruction {history[-1]:.4f}")
    return detector, history


@torch.no_grad()
def predict(detector: nn.Module) -> list[dict[str, Tensor]]:
    """The detections in an image that training has not seen."""
    image, _ = SwarmDataset(1, size=SIZE, seed=1)[0]
    output = detector.eval()(pixel_values=pixel_values([image]))
    return RTDetrImageProcessor().post_process_object_detection(output, threshold=0.05, target_sizes=[SIZE])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Self-reconstruction in an RT-DETR of transformers.")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    detector, _ = train(parser.parse_args(arguments).steps)
    print(f"{len(predict(detector)[0]['boxes'])} detections")


if __name__ == "__main__":
    main()
