"""The errors a user can meet. Each message states what was expected, what was got, and where."""


class MhimdistError(Exception):
    """Base of every error of ours; a command prints its message on one line and exits with status 1."""


class ConfigError(MhimdistError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(MhimdistError):
    """Input data cannot be used; the message names the file, slide, bag or field."""


class LabelError(DataError):
    """The label table is unusable: a missing, duplicate or unknown entry."""


class ManifestError(DataError):
    """A manifest is missing, edited, of another schema version, or disagrees with its shards."""


class CorruptShard(DataError):
    """A shard's bytes are not those that were written; the message names shard and member."""


class RemoteDataError(DataError):
    """A remote file cannot be reached, read or kept; the message names its URL."""


class SplitError(DataError):
    """A split is impossible (too few cases), or a case stands in two of its sets."""


class CheckpointError(MhimdistError):
    """A checkpoint is missing, damaged, or belongs to another model or configuration."""


class RunLockedError(MhimdistError):
    """Another process is training in the same folder."""


class DiskFullError(MhimdistError):
    """A file cannot be written because its disk or a quota is full; what was there before is intact."""


class WorkerLostError(MhimdistError):
    """A worker of a run of several was killed or hangs; the message names it where that is known."""


class PreemptedError(MhimdistError):
    """A run was asked to stop and has saved itself; the same command goes on with it."""


class NonFiniteError(MhimdistError):
    """A loss or a score became NaN or infinite; the message names the bags of the step."""


class ClusterError(MhimdistError):
    """A cluster cannot be used: a local one did not start or ended early, or one is open to everybody."""


class SubmitError(MhimdistError):
    """A job cannot be submitted: its script is missing, or its upload is larger than Ray takes."""


class SweepError(MhimdistError):
    """A sweep cannot run as asked, or none of its trials finished."""


class CrossValidationError(MhimdistError):
    """Some runs of a cross-validation failed; the message names each with its reason."""
