"""The protocols: which bags select the epoch of a run."""

from typing import Literal

Protocol = Literal["strict", "paper", "refit", "nested"]
"""Strict: validation bags of the training fold; paper: the test fold; refit and nested: inner folds."""
