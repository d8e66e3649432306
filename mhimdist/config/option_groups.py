"""The headings of the options of all that trains, in a file, on the page of settings and in help.

Each option is under one heading, and no class has them all.
"""

from collections.abc import Mapping

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Name and data": ("name", "data", "features", "bag_of", "home"),
    "Model": ("preset", "model"),
    "Tables": ("tables", "rows", "without", "quick", "epochs", "transmil_epochs", "transmil_folds"),
    "Folds and protocol": (
        *("protocol", "folds", "run_folds", "outer_folds", "inner_folds", "seeds", "split_file"),
        *("test_share", "validation_share", "paper_validation_share", "split_seed"),
    ),
    "Search": (
        *("num_trials", "sampler", "seed", "num_startup", "grid_points", "warm_presets", "warm_from"),
        *("objective", "against"),
    ),
    "Training": ("train",),
    "Early stopping of trials": ("scheduler", "grace_epochs", "reduction_factor", "between_folds"),
    "Final runs": ("final_seeds", "final_top"),
    "Resources": (
        *("cpus_per_run", "gpus_per_run", "workers", "min_workers", "parallel_folds", "at_once"),
        *("insecure",),
    ),
    "Failures and checkpoints": (
        *("max_failures", "max_failures_in_a_row", "worker_timeout_s", "trial_timeout_s", "retry_failed"),
        *("save_every_s", "keep_last", "keep_best", "fresh"),
    ),
    "Records": ("storage", "track"),
}
