"""Lightning callbacks of a training run, one in each file."""

from .averaged_weights import AveragedWeights
from .checkpoints import Checkpoints, RandomState
from .evaluation import Evaluation
from .filter_share import FilterShare
from .pictures import Pictures
from .progress import ProgressBar
from .unreadable_images import UnreadableImages

__all__ = [
    "AveragedWeights",
    "Checkpoints",
    "Evaluation",
    "FilterShare",
    "Pictures",
    "ProgressBar",
    "RandomState",
    "UnreadableImages",
]
