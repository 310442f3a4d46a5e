"""The AI-TOD metric, and what stands behind its numbers: classes, curves, the best F1 and missed objects."""

from .metric import ClassResult, Curve, DetailedEvaluation, detailed_evaluation, evaluate_detections, protocol
from .missed import missed_objects
from .plots import plot_curves
from .results import coco_results, detections_by_image
from .tables import format_classes, format_table
from .threshold import BestF1, best_f1

__all__ = [
    "BestF1",
    "ClassResult",
    "Curve",
    "DetailedEvaluation",
    "best_f1",
    "coco_results",
    "detailed_evaluation",
    "detections_by_image",
    "evaluate_detections",
    "format_classes",
    "format_table",
    "missed_objects",
    "plot_curves",
    "protocol",
]
