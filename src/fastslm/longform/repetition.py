"""What is done about loops: a text that says the same again and again is written again otherwise, at last cut."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from fastslm.errors import OptionError
from fastslm.longform.generation import PLAIN, WATCHED, Decoding
from fastslm.longform.readers import Reading
from fastslm.model.loops import repeated

# `retry`: written again with what holds against loops, and cut if that fails; `cut`: cut at once; `keep`: left alone.
Repetition = Literal["retry", "cut", "keep"]
RETRIES = (
    Decoding(no_repeat_ngram_size=6, stop_at_loop=True),
    Decoding(no_repeat_ngram_size=3, repetition_penalty=1.2, stop_at_loop=True),
)


def check_repetition(repetition: str) -> None:
    """Refuse what is none of the three.

    Raises:
        OptionError: it is not.
    """
    if repetition not in get_args(Repetition):
        raise OptionError(f"repetition is {repetition!r}: choose one of {', '.join(get_args(Repetition))}.")


def guarded(
    read: Callable[[Sequence[int], Decoding], list[Reading]],
    count: int,
    text_of: Callable[[Sequence[int]], str],
    repetition: Repetition,
    together: int | None = None,
) -> list[Reading]:
    """Readings of which none is a loop; one that was none from the start is what `read` gave, untouched.

    Those that loop are gathered from all of them before they are read again: a few cost hardly more than one.

    Args:
        read: reads the items of these numbers, with one way of decoding.
        count: of items, 0 to count - 1.
        text_of: the text of tokens.
        together: items that are read at a time at most, the first time and again; by default all.
    """

    def in_groups(items: Sequence[int], decoding: Decoding) -> list[Reading]:
        size = together or max(1, len(items))
        return [own for start in range(0, len(items), size) for own in read(items[start : start + size], decoding)]

    if repetition == "keep":
        return in_groups(range(count), PLAIN)
    readings = in_groups(range(count), WATCHED)
    looping = [index for index, reading in enumerate(readings) if repeated(reading.ids).any()]
    for attempt, decoding in enumerate(RETRIES if repetition == "retry" else (), 2):
        again = in_groups(looping, decoding)
        for index, reading in zip(list(looping), again, strict=True):
            first = readings[index]
            helped = reading.finish_reason == "stop" and not repeated(reading.ids).any()
            readings[index] = replace(
                reading if helped else first,
                attempts=attempt,
                prompt_tokens=first.prompt_tokens + reading.prompt_tokens,
                cached_tokens=first.cached_tokens,  # what one attempt saves another, nobody kept before
            )
            if helped:
                looping.remove(index)
    for index in looping:
        ids = readings[index].ids
        kept = tuple(token for token, again in zip(ids, repeated(ids), strict=True) if not again)
        readings[index] = replace(readings[index], text=text_of(kept), ids=kept, finish_reason="repetition")
    return readings
