"""The commands: their names, what they are for, and where their options and actions are.

Modules are named and not imported: a command loads those of its own, and its help those of its options alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A command.

    Attributes:
        summary: what it is for, in the list of commands.
        options: the class of its options, as module:Class.
        action: what it does with them, as module:function.
        kind: the kind of files that it takes, if it takes files of settings.
    """

    summary: str
    options: str
    action: str
    kind: str = ""


_ACTIONS = "mhimdist.commands.actions"
_OPTIONS = "mhimdist.commands.options"

TABLE: Mapping[str, Mapping[str, "Entry | Mapping[str, Entry]"]] = {
    "Data": {
        "shard": Entry(
            "pack features and labels into checked shards",
            "data_prep.shard_options:ShardOptions",
            "data_prep.shard:shard_and_say",
        ),
        "verify": Entry(
            "check every byte of shards, and repair them",
            "data_prep.options:Verification",
            "data_prep.verify:verify_shards",
        ),
        "inspect": Entry(
            "show classes, sizes, encoders and odd bags of shards",
            "data_prep.options:Inspection",
            "data_prep.inspect:inspect_shards",
        ),
        "merge": Entry(
            "make one data set out of several",
            "data_prep.options:Merging",
            "data_prep.merge:merge_shards",
        ),
        "data": Entry(
            "make an embedded data set or a classic benchmark",
            "data_prep.options:Data",
            f"{_ACTIONS}:make_data",
        ),
    },
    "Train": {
        "train": Entry(
            "train one network on a holdout or a fold",
            f"{_OPTIONS}:Train",
            f"{_ACTIONS}:cross_validate",
            "train",
        ),
        "cross-validate": Entry(
            "train folds x seeds, with and without masking",
            f"{_OPTIONS}:CrossValidate",
            f"{_ACTIONS}:cross_validate",
            "cross-validate",
        ),
        "tune": Entry(
            "search for better settings, and test the best once",
            f"{_OPTIONS}:Tune",
            f"{_ACTIONS}:tune",
            "tune",
        ),
        "ablate": Entry(
            "fill the tables of the paper",
            f"{_OPTIONS}:Ablate",
            f"{_ACTIONS}:ablate",
        ),
    },
    "Use": {
        "predict": Entry(
            "predict slides with trained networks",
            "mhimdist.prediction.options:Prediction",
            f"{_ACTIONS}:predict",
        ),
        "heatmap": Entry(
            "draw where networks look, also for QuPath",
            "mhimdist.heatmaps.options:HeatMaps",
            "mhimdist.heatmaps.run:heat_maps",
        ),
        "report": Entry(
            "write one HTML page about anything that ran",
            "mhimdist.pages.options:ReportJob",
            "mhimdist.pages.write:run_report",
        ),
        "compare": Entry(
            "test runs against each other on the same slides",
            "mhimdist.comparison.options:ComparisonJob",
            "mhimdist.comparison.compare:run_comparison",
        ),
        "export": Entry(
            "write networks that load without this package",
            "mhimdist.export.options:Export",
            f"{_ACTIONS}:export",
        ),
    },
    "Run": {
        "submit": Entry(
            "send a job or a command to a Ray cluster",
            "mhimdist.cluster.options:Submit",
            f"{_ACTIONS}:submit",
        ),
        "cluster": {
            "local": Entry(
                "run a command with a private cluster on this machine",
                "mhimdist.cluster.options:LocalCluster",
                "mhimdist.cluster.local:run_locally",
            ),
            "slurm": Entry(
                "write a batch script for Slurm",
                "mhimdist.cluster.slurm_options:SlurmScript",
                "mhimdist.cluster.slurm:write_script",
            ),
        },
        "config": {
            "init": Entry(
                "print a file of settings, each explained",
                "mhimdist.run_files.options:Init",
                f"{_ACTIONS}:begin_file",
            ),
            "schema": Entry(
                "print the JSON Schema of such files, for editors",
                "mhimdist.run_files.options:Schema",
                f"{_ACTIONS}:describe_files",
            ),
            "settings": Entry(
                "print all settings as Markdown",
                "mhimdist.run_files.options:SettingsPage",
                f"{_ACTIONS}:list_settings",
            ),
        },
        "doctor": Entry(
            "look at this machine, the cluster and your data",
            "mhimdist.doctor.options:Doctor",
            "mhimdist.doctor.run:run_doctor",
        ),
    },
}
GROUPS: Mapping[str, str] = {
    "cluster": "start a cluster here, or on Slurm",
    "config": "begin and describe files of settings",
}
"""What the commands that have commands of their own are for."""

SUBMITTED: Sequence[str] = (
    *("shard", "verify", "data", "train", "cross-validate", "tune", "ablate", "predict", "heatmap"),
)
"""The commands that can be sent to a cluster."""
