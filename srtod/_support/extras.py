"""Packages that only some uses need: extras of the installation."""

from __future__ import annotations

__all__ = ["MissingExtraError"]


class MissingExtraError(ImportError):
    """A package that is not installed, and which extra brings it: a sentence for the user."""
