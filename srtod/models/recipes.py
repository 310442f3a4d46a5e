"""Recipes: what each detector is made of.

A recipe is a function under the name of its detector. All lists of detectors follow from the recipes; a new one needs
its recipe, perhaps a head, and a row in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from .anchors import AnchorFit, AnchorLayout, fit_anchor_scale
from .backbones import Backbone
from .boxes import receptive_fields
from .detr import DeformableDetrHead, DeformableDetrPyramid, DFineHead, DFinePyramid
from .heads import (
    ATSSHead,
    CascadeHead,
    CascadeProposalNetwork,
    DyHead,
    FCOSHead,
    RetinaNetHead,
    TridentHead,
    TwoStageHead,
    rfla_region_proposal_network,
)
from .heads.cascade_rpn import REGIONS
from .heads.retinanet import OCTAVE_SCALES
from .heads.trident import DILATIONS
from .heads.two_stage import ProposalNetwork
from .necks import FPN, RecursiveFeaturePyramid, RetinaFPN

__all__ = ["ANCHORS", "DETECTORS", "RECIPES", "PartOptions", "Parts", "fit_detectors"]


@dataclass(frozen=True)
class PartOptions:
    """What a recipe is asked for: the options of `build_detector` that concern the parts.

    Attributes:
        num_classes: number of classes, background included.
        channels: channels of the pyramid.
        backbone: builds the backbone; takes the further options of `build_backbone`.
        anchors: options of the heads that have anchors with a scale.
        detections: options of every head.
        proposals: options of `ProposalNetwork`.
        regions: options of the heads behind it.
        box_loss, sac, rfla_paper, scale_aware: options of a few detectors, see `build_detector`.
    """

    num_classes: int
    channels: int
    backbone: Callable[..., Backbone]
    anchors: dict[str, Any]
    detections: dict[str, Any]
    proposals: dict[str, Any]
    regions: dict[str, Any]
    box_loss: str
    sac: bool
    rfla_paper: bool
    scale_aware: bool


class Parts(NamedTuple):
    """The parts of a detector between its transform and its self-reconstruction.

    Attributes:
        backbone: maps the batch to C2-C5.
        neck: maps those to the pyramid.
        head: see `srtod.models.heads`.
        stride: stride of the pyramid's finest level, in pixels.
        copies: how often the batch holds every image in training, see `DetectionTransform`.
    """

    backbone: Backbone
    neck: nn.Module
    head: nn.Module
    stride: int
    copies: int = 1


Recipe = Callable[[PartOptions], Parts]

RECIPES: dict[str, Recipe] = {}
"""The recipe of each detector."""

ANCHORS: dict[str, AnchorLayout] = {}
"""The anchors of each detector whose anchors have a scale."""

P2_TO_P6 = (4, 8, 16, 32, 64)
P3_TO_P7 = (8, 16, 32, 64, 128)


def recipe(name: str, anchors: AnchorLayout | None = None) -> Callable[[Recipe], Recipe]:
    """Registers a recipe.

    Args:
        name: of the detector.
        anchors: its anchors, if they have a scale.
    """

    def register(build: Recipe) -> Recipe:
        RECIPES[name] = build
        if anchors is not None:
            ANCHORS[name] = anchors
        return build

    return register


@recipe("retinanet", AnchorLayout(P3_TO_P7, octaves=OCTAVE_SCALES))
def _retinanet(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = RetinaFPN(backbone.channels, options.channels, p6_from="c5")
    head = RetinaNetHead(options.channels, options.num_classes, **options.anchors, **options.detections)
    return Parts(backbone, neck, head, stride=8)


@recipe("faster_rcnn", AnchorLayout(P2_TO_P6))
def _faster_rcnn(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = FPN(backbone.channels, options.channels)
    head = TwoStageHead(
        options.channels,
        options.num_classes,
        box_loss=options.box_loss,
        **options.anchors,
        **options.detections,
        **options.proposals,
        **options.regions,
    )
    return Parts(backbone, neck, head, stride=4)


@recipe("cascade_rcnn", AnchorLayout(P2_TO_P6))
def _cascade_rcnn(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = FPN(backbone.channels, options.channels)
    head = CascadeHead(
        options.channels,
        options.num_classes,
        **options.anchors,
        **options.detections,
        **options.proposals,
        **options.regions,
    )
    return Parts(backbone, neck, head, stride=4)


@recipe("detectors", AnchorLayout(P2_TO_P6))
def _detectors(options: PartOptions) -> Parts:
    backbone, neck = _recursive(options)
    head = CascadeHead(
        options.channels,
        options.num_classes,
        **options.anchors,
        **options.detections,
        **options.proposals,
        **options.regions,
    )
    return Parts(backbone, neck, head, stride=4)


@recipe("rfla")
def _rfla(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = FPN(backbone.channels, options.channels)
    rpn = _rfla_rpn(backbone, options)
    head = CascadeHead(options.channels, options.num_classes, rpn=rpn, **options.detections, **options.regions)
    return Parts(backbone, neck, head, stride=4)


@recipe("fcos")
def _fcos(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = RetinaFPN(backbone.channels, options.channels, p6_from="p5")
    return Parts(backbone, neck, FCOSHead(options.channels, options.num_classes, **options.detections), stride=8)


@recipe("atss", AnchorLayout(P3_TO_P7, ratios=(1.0,)))
def _atss(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = RetinaFPN(backbone.channels, options.channels, p6_from="p5")
    head = ATSSHead(options.channels, options.num_classes, **options.anchors, **options.detections)
    return Parts(backbone, neck, head, stride=8)


@recipe("tridentnet", AnchorLayout(P2_TO_P6))
def _tridentnet(options: PartOptions) -> Parts:
    backbone = options.backbone(dilations=DILATIONS)
    neck = FPN(backbone.channels, options.channels)
    head = TridentHead(
        options.channels,
        options.num_classes,
        scale_aware=options.scale_aware,
        box_loss=options.box_loss,
        **options.anchors,
        **options.detections,
        **options.proposals,
        **options.regions,
    )
    return Parts(backbone, neck, head, stride=4, copies=backbone.branches)


@recipe("cascade_rpn", AnchorLayout(P2_TO_P6, ratios=(1.0,)))
def _cascade_rpn(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = FPN(backbone.channels, options.channels)
    rpn = CascadeProposalNetwork(
        options.channels,
        P2_TO_P6,
        detections_per_image=options.detections["detections_per_image"],
        **options.anchors,
        **options.proposals,
    )
    detections = options.detections | options.regions
    head = TwoStageHead(options.channels, options.num_classes, rpn=rpn, **detections, **REGIONS)
    return Parts(backbone, neck, head, stride=4)


@recipe("dyhead", AnchorLayout(P3_TO_P7, ratios=(1.0,)))
def _dyhead(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = RetinaFPN(backbone.channels, options.channels, p6_from="p5")
    head = DyHead(options.channels, options.num_classes, **options.anchors, **options.detections)
    return Parts(backbone, neck, head, stride=8)


@recipe("detectors_rfla")
def _detectors_rfla(options: PartOptions) -> Parts:
    backbone, neck = _recursive(options)
    rpn = _rfla_rpn(backbone, options)
    head = CascadeHead(options.channels, options.num_classes, rpn=rpn, **options.detections, **options.regions)
    return Parts(backbone, neck, head, stride=4)


@recipe("deformable_detr")
def _deformable_detr(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = DeformableDetrPyramid(backbone.channels, options.channels)
    head = DeformableDetrHead(options.channels, options.num_classes, **options.detections)
    return Parts(backbone, neck, head, stride=4)


@recipe("dfine")
def _dfine(options: PartOptions) -> Parts:
    backbone = options.backbone()
    neck = DFinePyramid(backbone.channels, options.channels)
    return Parts(backbone, neck, DFineHead(options.channels, options.num_classes, **options.detections), stride=4)


def _recursive(options: PartOptions) -> tuple[Backbone, nn.Module]:
    """Backbone and neck of DetectoRS."""
    backbone = options.backbone(conv_aws=True, sac=options.sac, output_image=True)
    again = options.backbone(conv_aws=True, sac=options.sac)
    return backbone, RecursiveFeaturePyramid(again, backbone.channels, options.channels)


def _rfla_rpn(backbone: Backbone, options: PartOptions) -> ProposalNetwork:
    """RFLA's region proposal network on P2-P6 of a backbone."""
    return rfla_region_proposal_network(
        options.channels,
        P2_TO_P6,
        receptive_fields=receptive_fields(backbone.layers),
        paper=options.rfla_paper,
        detections_per_image=options.detections["detections_per_image"],
        **options.proposals,
    )


DETECTORS = tuple(RECIPES)
"""The names of all detectors."""


def fit_detectors(sizes: Tensor) -> dict[tuple[str, ...], AnchorFit]:
    """Fits the anchor scale of every detector that has one; detectors whose anchors are alike share the fit.

    Args:
        sizes: as `fit_anchor_scale` takes them.

    Returns:
        The fits, by the names of their detectors.
    """
    detectors: dict[AnchorLayout, list[str]] = {}
    for name, layout in ANCHORS.items():
        detectors.setdefault(layout, []).append(name)
    return {
        tuple(names): fit_anchor_scale(sizes, layout.strides, ratios=layout.ratios, octaves=layout.octaves)
        for layout, names in detectors.items()
    }
