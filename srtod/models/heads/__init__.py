"""Detection heads, exchangeable parts of `srtod.models.Detector`.

Every head is a module `head(batch, features, targets) -> (detections, losses)`:

- `batch`: torchvision's `ImageList`, the normalised batch with the sizes of its images;
- `features`: the pyramid, an ordered dictionary of `[N, C, h, w]`, finest level first;
- `targets`: in training one dictionary an image with `boxes` and `labels` in pixels of the batch, and perhaps `ignore`,
  regions where a prior or proposal without an object counts as nothing instead of as background; else None;
- `detections`: in evaluation one {"boxes", "labels", "scores"} an image, else an empty list;
- `losses`: in training a dictionary of losses `[]`, else an empty dictionary.

But for those with queries, a head also has `head.padded(features, size) -> PaddedDetections`, detections of fixed
shapes for export; `size` (h, w) is what is no padding in each image.

Where several processes train together and average their gradients (DDP), the one-stage heads divide by the positives of
all of them, so that the gradients are those of one process with all the images. The two-stage heads average over the
anchors and proposals that they sample, up to a fixed number an image. Which ones is random; where all processes sample
equally many, as they do unless images have too few, the gradients are so only in expectation.
"""

from .atss import ATSSHead
from .cascade import CascadeHead
from .cascade_rpn import CascadeProposalNetwork
from .dyhead import DyHead
from .fcos import FCOSHead
from .padded import PaddedDetections
from .retinanet import RetinaNetHead
from .rfla import rfla_region_proposal_network
from .trident import TridentHead
from .two_stage import TwoStageHead

__all__ = [
    "ATSSHead",
    "CascadeHead",
    "CascadeProposalNetwork",
    "DyHead",
    "FCOSHead",
    "PaddedDetections",
    "RetinaNetHead",
    "TridentHead",
    "TwoStageHead",
    "rfla_region_proposal_network",
]
