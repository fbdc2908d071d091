"""What a run writes: a disk that is full is one sentence, not a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fastslm.errors import TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors do not hand on the system's error, only words about it.
WORDS_OF_WRITING = ("write failed", "unexpected pos", "No space left", "I/O error", "IoError")


@contextmanager
def writing(target: Path, what: str) -> Iterator[None]:
    """Around everything that writes `target`.

    Args:
        what: is written, for the sentence: "the checkpoint".

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError):
            reason = "the disk is full" if error.errno in FULL else str(error.strerror or error)
        elif any(words in str(error) for words in WORDS_OF_WRITING):
            reason = "the disk is full"
        else:
            raise
        raise TrainingError(
            f"{target}: {what} could not be written ({reason}); free some room and start the same command again: "
            "it goes on from what is whole on the disk."
        ) from None
