"""Fused ops for tiny object detection, and the SR-TOD detectors built on them."""

__version__ = "0.1.0"
