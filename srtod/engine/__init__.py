"""Training: a Lightning module, a data module and callbacks, and `train`, which runs them from a configuration."""

from .callbacks import Evaluation
from .callbacks.checkpoints import AtomicCheckpointIO
from .config import DataConfig, ModelConfig, TrainConfig
from .data import DetectionData
from .distributed import is_main_process
from .module import DetectionModule
from .presets import preset_names, read_config
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
    "is_main_process",
    "preset_names",
    "read_config",
    "train",
]
