"""Everything that can go wrong through no fault of our code: one class per cause, each message a sentence with the fix.

    DramaError
    ├── MissingExtraError (ImportError)         an optional package is not installed
    ├── ModelFolderError (ValueError)           a model folder is incomplete, damaged or of the wrong shape
    │   └── AttentionDirectionError             its attention direction cannot be honoured here
    ├── DeviceError (ValueError)                a device or number format that a runtime cannot compute with here
    ├── PrecisionError (ValueError)             a model's embeddings would be too far off in int8
    ├── TextError (TypeError)                   something that is not text was passed to be encoded
    ├── PromptError (ValueError)                a task, instruction or example that the model has no format for
    ├── DimensionError (ValueError)             an embedding size that the model does not have
    ├── LengthError (ValueError)                a number of tokens that leaves no room for a text
    ├── OutputError (OSError)                   a folder or file that cannot be written, or is something else
    ├── AddressError (OSError)                  an address that a server cannot listen on
    ├── CollectionError (ValueError)            a collection, run or example file is malformed
    ├── IndexFolderError (ValueError)           an index folder is damaged, or belongs to another model
    ├── IndexKindError (ValueError)             a kind of index that there is not, or that does not suit the vectors
    ├── RecipeError (ValueError)                a recipe has an unknown or wrong field
    ├── CorpusError (ValueError)                a text corpus is empty or does not fit the model
    ├── ShapeError (ValueError)                 a pruning target that the source model cannot be cut to
    ├── EndpointError (RuntimeError)            a large model's endpoint is down, refuses, or answers nonsense
    ├── ClusterError (RuntimeError)             a Ray cluster is not there, or its workers keep dying
    ├── HubError (RuntimeError)                 the model hub cannot be reached, or refuses an upload
    └── TrainingError (RuntimeError)            a run had to stop (non-finite loss, masks not converged)

The command line prints the message of a `DramaError` and exits with code 2; anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations


class DramaError(Exception):
    """Base of all errors that a user can mend."""


class MissingExtraError(DramaError, ImportError):
    """An optional package is needed here and not installed.

    Args:
        feature: what needs it.
        extra: of this package, which brings it.
        package: that pip installs, where no extra brings it.
    """

    def __init__(self, feature: str, extra: str = "", *, package: str = "") -> None:
        wanted = package or f"drama-models[{extra}]"
        super().__init__(f"{feature} needs packages that are not installed: pip install '{wanted}'.")


class ModelFolderError(DramaError, ValueError):
    """A model folder is incomplete, damaged, or of a shape that does not fit its configuration."""


class AttentionDirectionError(ModelFolderError):
    """The attention direction a model was trained with cannot be honoured in this environment."""


class DeviceError(DramaError, ValueError):
    """A device or number format that a runtime cannot compute with here."""


class PrecisionError(DramaError, ValueError):
    """A model's embeddings would be too far off in the precision that was asked for."""


class TextError(DramaError, TypeError):
    """Something that is not text was passed to be encoded."""


class PromptError(DramaError, ValueError):
    """A task, instruction or in-context example that the model has no format for."""


class DimensionError(DramaError, ValueError):
    """An embedding size that the model does not have."""


class LengthError(DramaError, ValueError):
    """A number of tokens to keep that leaves no room for a text."""


class OutputError(DramaError, OSError):
    """What was to be written cannot be: the place is taken, not writable, or full."""


class AddressError(DramaError, OSError):
    """An address that a server cannot listen on."""


class CollectionError(DramaError, ValueError):
    """A collection, run or example file is malformed; the message names the file and the line."""


class IndexFolderError(DramaError, ValueError):
    """An index folder is damaged, or was built with another model."""


class IndexKindError(DramaError, ValueError):
    """A kind or setting of an index that there is not, or that does not suit its vectors."""


class RecipeError(DramaError, ValueError):
    """A recipe has an unknown or wrong field; the message names the field and its line."""


class CorpusError(DramaError, ValueError):
    """A text corpus is empty, or does not fit the model that is to read it."""


class ShapeError(DramaError, ValueError):
    """A pruning target that the source model cannot be cut to."""


class EndpointError(DramaError, RuntimeError):
    """A large model's endpoint is down, refuses the key, or answers nonsense; the message says what is kept."""


class ClusterError(DramaError, RuntimeError):
    """A Ray cluster cannot be used, or its workers died again and again."""


class HubError(DramaError, RuntimeError):
    """The model hub cannot be reached, or refuses an upload; nothing is published unless the message says so."""


class TrainingError(DramaError, RuntimeError):
    """A run had to stop; the message says at which step and what is kept."""


class TextsCutWarning(UserWarning):
    """Texts were longer than the maximum length; `count` says how many."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(
            f"{count} texts were longer than the maximum length and were cut; "
            "raise max_length if the model allows it, or split them into passages."
        )
