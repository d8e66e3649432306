"""The faults that tests inject for real: `@pytest.mark.faults(18)` marks a test of row 18."""

from typing import NamedTuple


class Row(NamedTuple):
    """A fault, and what you see when it happens."""

    title: str
    outcome: str


def _rows(first: int, *rows: tuple[str, str]) -> dict[int, Row]:
    return {number: Row(*row) for number, row in enumerate(rows, first)}


DATA = _rows(
    1,
    ("a flipped bit in a shard's payload", "an error names the shard and the member"),
    ("a flipped bit in a tar header", "an error names the shard; no bag is passed over"),
    ("a truncated shard", "an error, wherever the shard was cut"),
    ("a missing, empty, surplus or duplicate shard", "all are listed before training"),
    ("an edited or outdated manifest", "the manifest is refused"),
    ("a member that would run when it is unpickled", "the member is named; nothing runs"),
    (
        "`pipe:`, `sh:` or another unknown scheme as the address of data",
        "the scheme is refused; nothing runs",
    ),
    (
        "a tar with paths out of its folder, links or device nodes",
        "the member is named; nothing is extracted",
    ),
    ("a file that claims or unpacks to far more than it holds", "it is refused within little memory"),
    ("an npy array of pickled objects", "it is refused; nothing runs"),
    ("NaN or infinity in features", "the bag is named; no weight changes"),
    ("a bag without instances", "it is refused while sharding"),
    ("a bag of 1, 2 or 3 instances", "masking keeps at least one; the loss is finite"),
    ("a giant bag", "bounded memory, or an error that names the limit"),
    ("features of another dtype, byte order, layout or width", "they are converted, or the bag is named"),
    (
        "labels that are missing, duplicate, unknown or of one class",
        "an error before training; no AUC is invented",
    ),
    ("a patient in two sets of a split", "the split is refused"),
)
TRAINING = _rows(
    18,
    ("SIGKILL of a worker within a step", "the run resumes to the same bits"),
    ("SIGKILL at any stage of writing a checkpoint", "the old or the whole new checkpoint is there"),
    ("SIGTERM", "a checkpoint, status 75, and the same command resumes"),
    ("a node is lost", "the rest trains on; after too many losses the run fails by name"),
    ("a worker that hangs", "the others name it within the timeout"),
    ("SIGKILL of the driver", "no process is left, and the same command resumes"),
    ("workers leave and come back", "every step sees the same bags"),
    ("a stop within an epoch", "no bag is lost or doubled; the run ends with the same bits"),
    ("a flipped bit in a checkpoint", "a warning, and an older checkpoint"),
    ("a checkpoint or weights that would run code", "they are refused; nothing runs"),
    ("a checkpoint of another network, or parts of one", "an error names what differs"),
    ("a full disk", "the message says so; what was there stays whole"),
    ("a place that cannot be written, or with an odd name", "an error before training, or it works"),
    ("two runs in one folder", "the second one is refused"),
)
SWEEPS = _rows(
    32,
    ("a trial that raises", "the trial fails, the sweep goes on and counts it"),
    ("a trial's process is killed", "the trial resumes, a limited number of times"),
    ("a metric that is not finite", "the trial fails and is never the best"),
    ("a torn write to the study", "the study is whole again, or is refused by name"),
    ("an open cluster, a foreign cluster, a readable token", "none is joined; ports and files are closed"),
    ("a secret in the environment, a URL or an option", "it is in no log and in no file"),
    ("labels without any signal", "the AUC is that of chance"),
)
FURTHER = _rows(
    39,
    ("a misspelt mode of Ray's authentication", "every mode but `token` is refused"),
    ("a name that leads out of its folder", "it is refused; nothing is deleted or copied"),
    ("data that are swapped or cut under a run", "every process compares, and names the data"),
    ("a damaged file of a run's or a sweep's state", "it is skipped for an older one, rewritten or named"),
    ("NaN behind the mask", "the bag is named; no weight changes"),
    ("bombs in attributes, tables, archives and weights", "they are refused within little memory"),
    ("SIGTERM while Ray starts", "status 75, and no process is left"),
    ("a trial that is silent", "it is named"),
    ("a home folder with `?` or `%41` in its name", "the study is in that folder"),
    ("a store that does not answer", "it is named within seconds"),
    ("a study that is locked, or on a full disk", "each is called what it is"),
    ("a build of demo data that is killed", "the next one removes what is left"),
    ("names that act as HTML, Markdown, formulas or control sequences", "they stay text"),
    ("arrays of absurd shapes, dtypes or nesting; deep settings", "an error in one line"),
)
ROWS: dict[int, Row] = {**DATA, **TRAINING, **SWEEPS, **FURTHER}
