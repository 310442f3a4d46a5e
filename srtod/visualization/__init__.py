"""Pictures of what a detector sees: boxes, and with self-reconstruction the way from the image to the filter."""

from .figures import SCORE, draw_boxes, draw_detections, drawn_from, heat_map, panel, reconstruction_figure

__all__ = ["SCORE", "draw_boxes", "draw_detections", "drawn_from", "heat_map", "panel", "reconstruction_figure"]
