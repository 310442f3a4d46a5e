"""The AI-TOD metric, and what stands behind its numbers: classes, curves, the best F1, hits and misses."""

from .metric import ClassResult, Curve, DetailedEvaluation, detailed_evaluation, evaluate_detections, protocol
from .outcomes import Outcomes, outcomes
from .plots import plot_curves
from .results import coco_results, detections_by_image
from .tables import format_classes, format_metric, format_table
from .threshold import BestF1, best_f1

__all__ = [
    "BestF1",
    "ClassResult",
    "Curve",
    "DetailedEvaluation",
    "Outcomes",
    "best_f1",
    "coco_results",
    "detailed_evaluation",
    "detections_by_image",
    "evaluate_detections",
    "format_classes",
    "format_metric",
    "format_table",
    "outcomes",
    "plot_curves",
    "protocol",
]
