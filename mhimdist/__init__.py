"""Distributed, high-throughput training of MHIM-MIL.

Nothing is imported here: ray, optuna, DALI and triton load only where they are used.
"""

__version__ = "0.1.0"
