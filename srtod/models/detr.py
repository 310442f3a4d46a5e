"""Detectors with queries, by the library `transformers` (`pip install srtod[detr]`), whose pyramids begin at stride 4.

- Deformable DETR: Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", 2021, with
  boxes refined layer by layer. Its encoder and decoder are the head here.
- D-FINE: Peng et al., "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement", 2025. Its
  hybrid encoder, which makes the pyramid, is the neck here, and its decoder the head.

The published models begin at stride 8. Transformer, matching and losses are the library's. Backbones are this
library's, and so are the images: padded, not stretched to a square.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, clip_boxes_to_image

from srtod._support.extras import MissingExtraError

from .detr_targets import IgnoringRegions, relative_target
from .heads.dense import PRIOR_PROBABILITY

__all__ = ["DFineHead", "DFinePyramid", "DeformableDetrHead", "DeformableDetrPyramid"]

HEADS = 8
"""Attention heads, of both detectors."""

FEWEST_QUERIES = 300
"""Queries of the published models; a detector has more where an image may have more detections."""

MOST_DENOISED = 100
"""Objects of an image up to which D-FINE trains on noisy copies of them too; attention costs their number squared."""

LOSSES = {
    "loss_ce": "loss_classification",
    "loss_vfl": "loss_classification",
    "loss_bbox": "loss_box",
    "loss_giou": "loss_box_giou",
    "loss_fgl": "loss_box_distribution",
    "loss_ddf": "loss_box_distillation",
}
"""The library's names of the losses, and ours."""


class DeformableDetrPyramid(nn.Module):
    """P2-P6 of Deformable DETR: a 1x1 convolution of each of C2-C5, and a 3x3 convolution of stride 2 of C5.

    Args:
        in_channels: channels of C2 to C5.
        channels: channels of every level; a multiple of 32.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        _check_channels("deformable_detr", channels)
        convolutions = [nn.Conv2d(each, channels, kernel_size=1) for each in in_channels]
        convolutions.append(nn.Conv2d(in_channels[-1], channels, kernel_size=3, stride=2, padding=1))
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.get_parameter("bias"))
        self.projections = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, channels)) for conv in convolutions)

    def forward(self, features: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Maps C2-C5, each `[N, in_channels, h, w]`, to P2-P6, each `[N, channels, h, w]`, finest level first."""
        maps = [features[name] for name in ("c2", "c3", "c4", "c5", "c5")]
        levels = [project(source) for project, source in zip(self.projections, maps, strict=True)]
        return OrderedDict((f"p{index}", level) for index, level in enumerate(levels, start=2))


class DFinePyramid(nn.Module):
    """P2-P5 of D-FINE: the hybrid encoder, self-attention on C5 and a pyramid in both directions.

    Args:
        in_channels: channels of C2 to C5.
        channels: channels of every level; a multiple of 32.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        library = _library()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(each, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels))
            for each in in_channels
        )
        from transformers.models.d_fine.modeling_d_fine import DFineHybridEncoder

        self.encoder = DFineHybridEncoder(_dfine_config(library, channels))

    def forward(self, features: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Maps C2-C5, each `[N, in_channels, h, w]`, to P2-P5, each `[N, channels, h, w]`, finest level first."""
        maps = [features[name] for name in ("c2", "c3", "c4", "c5")]
        projected = [project(source) for project, source in zip(self.projections, maps, strict=True)]
        levels = self.encoder(inputs_embeds=projected).last_hidden_state
        return OrderedDict((f"p{index}", level) for index, level in enumerate(levels, start=2))


class QueryHead(nn.Module):
    """What both heads share; they add `predict`.

    A query whose box has its centre in an ignore region, and in no object, counts as nothing. Overlapping detections
    are not suppressed. All of it is float32 under autocast too: in bfloat16 a relative coordinate of an image of 800
    pixels is off by more than a pixel.

    Args:
        model: a detector of `transformers`.
        weights: weights of the losses in the sum, by the library's names.
        detections_per_image: the most detections an image.
        score_threshold: detections must score above this.
    """

    model: Any  # a class of the library

    def __init__(
        self, model: nn.Module, weights: Mapping[str, float], *, detections_per_image: int, score_threshold: float
    ) -> None:
        super().__init__()
        self.model = model
        self.weights = dict(weights)
        self.detections_per_image = detections_per_image
        self.score_threshold = score_threshold

    def predict(self, batch: ImageList, levels: list[Tensor], labels: list[dict[str, Tensor]] | None) -> Any:
        """The library's output, with `loss_dict` if there are labels."""
        raise NotImplementedError

    def forward(
        self, batch: ImageList, features: Mapping[str, Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections or losses; see `srtod.models.heads`."""
        labels = (
            [relative_target(target, batch) for target in targets] if self.training and targets is not None else None
        )
        with torch.autocast(batch.tensors.device.type, enabled=False):
            output = self.predict(batch, [level.float() for level in features.values()], labels)
            if labels is None:
                return self._detections(output.logits, output.pred_boxes, batch), {}
            return [], self._losses(output.loss_dict)

    def _losses(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses of all layers in one of each kind."""
        losses: dict[str, Tensor] = {}
        for name, value in parts.items():
            kind = "_".join(name.split("_")[:2])  # without the layer
            if kind in self.weights:
                losses[LOSSES[kind]] = losses.get(LOSSES[kind], 0) + self.weights[kind] * value
        # Where no object is, parts of the model are not used. Data-parallel training needs a gradient for all.
        unused = [0.0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad]
        losses["loss_classification"] = losses["loss_classification"] + torch.stack(unused).sum()
        return losses

    def _detections(self, logits: Tensor, boxes: Tensor, batch: ImageList) -> list[dict[str, Tensor]]:
        height, width = batch.tensors.shape[-2:]
        corners = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
        classes = logits.shape[2]
        most = min(self.detections_per_image, logits.shape[1] * classes)
        detections = []
        for scores, own, size in zip(logits.sigmoid().flatten(1), corners, batch.image_sizes, strict=True):
            scores, index = scores.topk(most)
            found = clip_boxes_to_image(own[index // classes], size)
            kept = (scores > self.score_threshold) & (found[:, 2:] > found[:, :2]).all(dim=1)
            detections.append({"boxes": found[kept], "labels": index[kept] % classes + 1, "scores": scores[kept]})
        return detections


class DeformableDetrHead(QueryHead):
    """Encoder and decoder of Deformable DETR, with six layers each and boxes refined in each layer of the decoder.

    The losses have the paper's weights.

    Args:
        channels: channels of the pyramid P2-P6; a multiple of 32.
        num_classes: number of classes, background included.
        detections_per_image, score_threshold: see `QueryHead`. There are as many queries as detections, 300 at least.
        nms_threshold: left aside.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        detections_per_image: int = 100,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
    ) -> None:
        library = _library()
        _check_channels("deformable_detr", channels)
        config = library.DeformableDetrConfig(
            backbone_config=_no_backbone(library),
            d_model=channels,
            encoder_ffn_dim=4 * channels,
            decoder_ffn_dim=4 * channels,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            num_feature_levels=5,
            num_queries=max(FEWEST_QUERIES, detections_per_image),
            num_labels=num_classes - 1,
            with_box_refine=True,
            auxiliary_loss=True,
            class_cost=2,
        )
        model = library.DeformableDetrForObjectDetection(config)
        _start(model)
        model.model.backbone = _GivenPyramid()
        model.model.input_proj = nn.ModuleList(nn.Identity() for _ in range(5))
        model.loss_function = IgnoringRegions(model.loss_function, batch_dim=1)
        super().__init__(
            model,
            {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0},
            detections_per_image=detections_per_image,
            score_threshold=score_threshold,
        )

    def predict(self, batch: ImageList, levels: list[Tensor], labels: list[dict[str, Tensor]] | None) -> Any:
        """See `QueryHead`."""
        mask = torch.zeros(batch.tensors[:, 0].shape, dtype=torch.long, device=batch.tensors.device)
        for index, (height, width) in enumerate(batch.image_sizes):
            mask[index, :height, :width] = 1
        given = self.model.model.backbone
        given.levels = levels
        output = self.model(batch.tensors.float(), pixel_mask=mask, labels=labels)
        given.levels = []
        return output


class DFineHead(QueryHead):
    """Decoder of D-FINE, with six layers. It trains on noisy copies of the objects too, where an image has at most 100.

    Args:
        channels: channels of the pyramid P2-P5; a multiple of 32.
        num_classes: number of classes, background included.
        detections_per_image, score_threshold: see `QueryHead`. There are as many queries as detections, 300 at least.
        nms_threshold: left aside.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        detections_per_image: int = 100,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
    ) -> None:
        library = _library()
        queries = max(FEWEST_QUERIES, detections_per_image)
        config = _dfine_config(library, channels, num_queries=queries, num_labels=num_classes - 1)
        model = library.DFineForObjectDetection(config)
        del model.model.backbone, model.model.encoder_input_proj, model.model.encoder  # neck and backbone have those
        model.loss_function = IgnoringRegions(model.loss_function, batch_dim=0)
        super().__init__(
            model,
            dict.fromkeys(("loss_vfl", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"), 1.0),  # of the library
            detections_per_image=detections_per_image,
            score_threshold=score_threshold,
        )

    def predict(self, batch: ImageList, levels: list[Tensor], labels: list[dict[str, Tensor]] | None) -> Any:
        """See `QueryHead`."""
        from transformers.modeling_outputs import BaseModelOutput

        most = max((len(label["boxes"]) for label in labels), default=0) if labels else 0
        self.model.model.config.num_denoising = MOST_DENOISED if most <= MOST_DENOISED else 0
        encoded = BaseModelOutput(last_hidden_state=cast(Any, levels))  # the library types it as one level
        return self.model(None, inputs_embeds=levels[0], encoder_outputs=encoded, labels=labels)


class _GivenPyramid(nn.Module):
    """Stands where a detector of the library has its backbone, and gives it levels that are computed already."""

    levels: Sequence[Tensor] = ()

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The levels `[N, C, h, w]`, each with the mask of its pixels that are no padding, bool `[N, h, w]`."""
        masks = [F.interpolate(pixel_mask[None].float(), size=level.shape[-2:])[0].bool() for level in self.levels]
        return list(zip(self.levels, masks, strict=True))


def _dfine_config(library: ModuleType, channels: int, **options: Any) -> Any:
    _check_channels("dfine", channels)
    return library.DFineConfig(
        backbone_config=_no_backbone(library),
        encoder_in_channels=[channels] * 4,
        encoder_hidden_dim=channels,
        encoder_ffn_dim=4 * channels,
        encoder_attention_heads=HEADS,
        feat_strides=[4, 8, 16, 32],
        encode_proj_layers=[3],
        d_model=channels,
        decoder_in_channels=[channels] * 4,
        decoder_ffn_dim=4 * channels,
        decoder_attention_heads=HEADS,
        decoder_n_points=[4, 4, 4, 4],
        num_feature_levels=4,
        num_denoising=MOST_DENOISED,
        initializer_bias_prior_prob=PRIOR_PROBABILITY,
        **options,
    )


def _start(model: Any) -> None:
    """Starts the predictions of Deformable DETR as its authors do: nothing found, boxes around the reference points."""
    for classifier, regressor in zip(model.class_embed, model.bbox_embed, strict=True):
        nn.init.constant_(classifier.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
        nn.init.zeros_(regressor.layers[-1].weight)
        nn.init.zeros_(regressor.layers[-1].bias)
    nn.init.constant_(model.bbox_embed[0].layers[-1].bias[2:], -2.0)  # sides of 0.12 of the image


def _no_backbone(library: ModuleType) -> Any:
    """The least that the library takes as a backbone: it is thrown away."""
    return library.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_indices=[1, 2, 3, 4]
    )


def _check_channels(name: str, channels: int) -> None:
    if channels % 32:
        raise ValueError(f"{name} needs channels that are a multiple of 32, got {channels}")


def _library() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("this detector needs transformers; pip install 'srtod[detr]'") from error
    return transformers
