"""What can go wrong on the user's side, each as one sentence with its remedy."""


class FastSLMError(Exception):
    """The user's input is at fault. The message is one sentence: what was found, what is allowed, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class AudioError(FastSLMError):
    """A recording is missing, unreadable, empty, or holds no usable samples."""


class CutShortError(AudioError):
    """A recording breaks off before its end; what is there of it can be asked for.

    Attributes:
        seconds: of sound that are there; `None` where nothing of it can be read.
    """

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


class WeightsError(FastSLMError):
    """Weights are unknown, cannot be fetched, or are not the ones that were pinned."""


class CheckpointError(FastSLMError):
    """A checkpoint does not fit the model that it is to be loaded into."""


class ManifestError(FastSLMError):
    """A line of a manifest does not follow the schema, or the audio it names is missing."""


class RecipeError(FastSLMError):
    """A recipe has an unknown key or a value that is not allowed."""


class OptionError(FastSLMError):
    """An option of a call is unknown or out of its range."""


class TrainingError(FastSLMError):
    """Training cannot go on: a loss that is not finite, a full disk, a run that belongs to another recipe."""
