"""The errors that a user can meet. Each message states what was expected, what was got, and where."""


class MhimdistError(Exception):
    """Base class of our errors; a command prints the message on one line and exits with status 1."""


class ConfigError(MhimdistError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(MhimdistError):
    """Input data is unusable; the message names the file, slide, bag or field."""


class LabelError(DataError):
    """The label table is unusable: an entry is missing, duplicate or unknown."""


class ManifestError(DataError):
    """A manifest is missing, was edited, has another schema version, or disagrees with its shards."""


class CorruptShard(DataError):
    """A shard's bytes have changed since it was written; the message names shard and member."""


class RemoteDataError(DataError):
    """A remote file cannot be reached, read or stored; the message names its URL."""


class SplitError(DataError):
    """A split is impossible (too few cases), or one case is in two of its sets."""


class UndefinedError(DataError):
    """A statistic is not defined for its inputs, such as the AUC of one class; the message says why."""


class ComparisonError(MhimdistError):
    """Results cannot be compared: they are of other data, other test slides or another protocol."""


class ReportError(MhimdistError):
    """A folder holds nothing that a report can be made of, or a file of it is damaged."""


class CheckpointError(MhimdistError):
    """A checkpoint is missing, damaged, or belongs to another model or configuration."""


class ExportMismatchError(MhimdistError):
    """An exported model does not compute what the trained one does; nothing was written."""


class RunLockedError(MhimdistError):
    """Another process is training in the same folder."""


class DiskFullError(MhimdistError):
    """A file cannot be written because its disk or a quota is full; the previous file is intact."""


class WorkerLostError(MhimdistError):
    """One of a run's workers was killed or hangs; the message names it if it is known."""


class PreemptedError(MhimdistError):
    """A run was asked to stop and has saved its state; the same command resumes it."""


class NonFiniteError(MhimdistError):
    """A loss or a score became NaN or infinite; the message names the bags of the step."""


class ClusterError(MhimdistError):
    """A cluster is unusable: a local one did not start or ended early, or one is open to everybody."""


class SubmitError(MhimdistError):
    """A job cannot be submitted: its script is missing, or its upload is larger than Ray accepts."""


class SweepError(MhimdistError):
    """A sweep cannot run with its settings, or none of its trials finished."""


class CrossValidationError(MhimdistError):
    """Some runs of a cross-validation failed; the message names each with the reason."""
