"""What the commands do with their options; each loads what it needs when it is called."""

from typing import TYPE_CHECKING

from mhimdist.errors import ConfigError
from mhimdist.foreign_text import put

if TYPE_CHECKING:
    from data_prep.options import Data
    from mhimdist.cluster.options import Submit
    from mhimdist.commands.options import Ablate, CrossValidate, Tune
    from mhimdist.export.options import Export
    from mhimdist.prediction.options import Prediction
    from mhimdist.run_files.options import Init, Schema, SettingsPage


def make_data(job: "Data") -> None:
    """Make the shards of an embedded data set or a classic benchmark."""
    if job.is_classic:
        from data_prep.classic import build_classic

        build_classic(job.classic)
    else:
        from data_prep.digits import build_embedded

        build_embedded(job.embedded)


def cross_validate(job: "CrossValidate") -> None:
    """Train and test the folds of a cross-validation, or the one of `mhimdist train`."""
    from data_prep.digits import ensure
    from mhimdist.cross_validation.compare import run_cross_validation

    run_cross_validation(job, data=ensure(job.data, job.home))


def tune(job: "Tune") -> None:
    """Run a sweep over the space of a file, or the package's own.

    Raises:
        ConfigError: there is no file, and the package's own space needs masking, which the model has not.
    """
    from data_prep.digits import ensure
    from mhimdist.search.mhim_space import mhim_space
    from mhimdist.search.written_space import WrittenSpace
    from mhimdist.sweep.run import run_sweep

    if job.space is None and job.train.teacher.kind == "none":
        raise ConfigError(
            f"{job.train.model.name} is not masked, and what tune searches by itself is the masking: "
            "expected abmil, dsmil or transmil; for another space write a job like jobs/tune_c16.py"
        )
    space = mhim_space if job.space is None else WrittenSpace(job.space)
    run_sweep(job.sweep, space, data=ensure(job.data, job.home))


def ablate(job: "Ablate") -> None:
    """Fill the tables of the paper."""
    from data_prep.digits import ensure
    from mhimdist.paper.ablation import run_ablation

    run_ablation(job, job.base, data=ensure(job.data, job.home))


def predict(job: "Prediction") -> None:
    """Predict slides."""
    from data_prep.digits import ensure
    from mhimdist.prediction.run import run_prediction

    run_prediction(job, data=ensure(job.data, job.home))


def export(job: "Export") -> None:
    """Export networks, and say what was written."""
    from mhimdist.export.run import export_model
    from mhimdist.foreign_text import say

    folder = export_model(job.run, job.out, member=job.member, candidate=job.candidate, onnx=job.onnx)
    say(f"exported: {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}")


def begin_file(job: "Init") -> None:
    """Print a file of settings.

    Raises:
        ConfigError: there are no settings of that name.
    """
    from mhimdist.run_files.begin import init

    put(init(job.settings, job.kind))


def describe_files(job: "Schema") -> None:
    """Print the JSON Schema of files of settings."""
    from mhimdist.run_files.describe import schema_text

    put(schema_text(job.kind))


def list_settings(job: "SettingsPage") -> None:
    """Print all settings as Markdown."""
    from mhimdist.run_files.describe import settings_page

    put(settings_page())


def submit(job: "Submit") -> None:
    """Submit a job script, or a command of `mhimdist`, to a Ray cluster."""
    from mhimdist.cluster.submit import submit_job
    from mhimdist.commands.table import SUBMITTED

    submit_job(job, commands=SUBMITTED)
