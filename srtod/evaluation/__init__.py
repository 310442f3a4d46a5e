"""The AI-TOD metric."""

from .metric import evaluate_detections, format_table

__all__ = ["evaluate_detections", "format_table"]
