"""Rooms that know nobody: what several parts of the package need and no part of it owns."""
