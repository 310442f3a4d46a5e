"""Helpers that any part of the package may use, and that use no part of it."""
