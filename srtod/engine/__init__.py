"""Training: a Lightning module, a data module and callbacks, and `train`, which runs them from a configuration."""

from .callbacks import AtomicCheckpointIO, Evaluation
from .config import DataConfig, ModelConfig, TrainConfig
from .data import DetectionData
from .module import DetectionModule
from .training import TrainedRun, train

__all__ = [
    "AtomicCheckpointIO",
    "DataConfig",
    "DetectionData",
    "DetectionModule",
    "Evaluation",
    "ModelConfig",
    "TrainConfig",
    "TrainedRun",
    "train",
]
