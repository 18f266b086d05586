"""Every mistake a user can make has one of these names, and says the value and the way out.

`assert` stays for our own invariants. Each error is also a ValueError or an OSError, so code that
already catches those goes on working.
"""


class ScalelabError(Exception):
    """Base of all errors that a user of the package can cause and mend."""


class ConfigError(ScalelabError, ValueError):
    """A model, training or command setting that cannot be used as given."""


class DataError(ScalelabError, ValueError):
    """Text, tokens or labels that cannot be used: empty, undecodable, too short, out of range."""


class DataFileError(ScalelabError, OSError):
    """A data file that is missing, unreadable, damaged, or could not be fetched."""


class WeightsError(ScalelabError, ValueError):
    """Weights that do not belong to the model they are loaded into."""


class CheckpointError(ScalelabError, OSError):
    """A checkpoint that is missing, damaged, of another model, or of another format version."""


class RecordError(ScalelabError, ValueError):
    """A run record with a missing, mistyped or impossible field."""


class FitError(ScalelabError, ValueError):
    """Measurements that a law cannot be fitted to: too few, not finite, or without the spread it needs."""


class BudgetError(ScalelabError, ValueError):
    """A budget, loss or price that a plan cannot be made for: not a positive finite number, out of reach."""


class TrainingError(ScalelabError, ValueError):
    """A training run that cannot go on: the loss is not finite, or the device lacks what was asked."""


class ParallelError(ScalelabError, ValueError):
    """Ranks that cannot work together: sizes that do not divide, no such rank, ranks that wait in vain."""


class LabError(ScalelabError, ValueError):
    """A lab used out of order: an unknown exercise, a missing prediction, an unusable tier."""
