"""What a user can mend. Every class here ends a command with exit code 2 and its message alone.

ScfmError
├── InputError              a file or matrix we cannot work with
│   ├── MissingFileError        no such path
│   ├── UnreadableFileError     truncated, or not the format its name says
│   ├── CountsError             not raw counts: log values, scaled, negative, NaN, non-integer
│   ├── EmptyCellError          cells without a single count
│   ├── DuplicateGeneError      one gene name on several columns, and summing was not chosen
│   ├── LabelError              an obs column that is absent or unusable
│   ├── StoreError              a store that is damaged, incomplete or of another version
│   └── DamagedReferenceError   a saved reference that is altered or incomplete
├── GeneCoverageError       too few of the counts fall on genes the model knows
├── ConfigError             unknown key, wrong type, impossible value
├── ModelError              a model folder that is incomplete, altered or of another kind
│   └── NewerFormatError        written by a newer scfm: sound, but not for this one to read
├── DivergedError           the loss is no longer a number
├── OutputError             cannot write: no permission, no space; what was there before survives
└── Interrupted             stopped on request; the message says how to go on

A message says what was found, what was wanted, and what to type next.
"""


class ScfmError(Exception):
    """Base of all errors a user can mend."""


class InputError(ScfmError):
    """A file or matrix scfm cannot work with."""


class MissingFileError(InputError):
    """No such path."""


class UnreadableFileError(InputError):
    """Truncated, or not the format its name says."""


class CountsError(InputError):
    """The values are not raw counts."""


class EmptyCellError(InputError):
    """Cells without a single count."""


class DuplicateGeneError(InputError):
    """One gene name on several columns, and summing was not chosen."""


class LabelError(InputError):
    """An obs column that is absent or unusable."""


class StoreError(InputError):
    """A store that is damaged, incomplete or of another version."""


class DamagedReferenceError(InputError):
    """A saved reference that is altered or incomplete."""


class GeneCoverageError(ScfmError):
    """Too few of the counts fall on genes the model knows."""


class ConfigError(ScfmError):
    """Unknown key, wrong type, impossible value."""


class ModelError(ScfmError):
    """A model folder that is incomplete, altered or of another kind."""


class NewerFormatError(ModelError):
    """Written by a newer scfm: sound, but not for this one to read, or to remove."""


class DivergedError(ScfmError):
    """The loss is no longer a number."""


class OutputError(ScfmError):
    """The output cannot be written; what was there before survives."""


class Interrupted(ScfmError):
    """Stopped on request; the message says how to go on."""


class ScfmWarning(UserWarning):
    """Something was decided for the user that they may want to decide themselves."""
