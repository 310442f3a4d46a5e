"""Matched studies: a grid of variants, seeds and data sets, trained a process each, and compared seed by seed."""
