"""What is done about loops, with readers that are made up: no weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from fastslm.errors import OptionError
from fastslm.longform.generation import PLAIN, WATCHED, Decoding
from fastslm.longform.readers import Reading
from fastslm.longform.repetition import RETRIES, check_repetition, guarded

GOOD = tuple(range(30))
LOOP = (1, 2, 3, *(7, 8, 9) * 12)


def _text(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


@dataclass
class _Reader:
    """Reads item `i` as `texts[i]`, or under a retry's decoding as `again` says."""

    texts: list[tuple[int, ...]]
    again: dict[Decoding, Reading] = field(default_factory=dict)
    asked: list[tuple[list[int], Decoding]] = field(default_factory=list)

    def __call__(self, rows: Sequence[int], decoding: Decoding) -> list[Reading]:
        self.asked.append((list(rows), decoding))
        return [self.again.get(decoding, Reading(_text(self.texts[row]), (), self.texts[row])) for row in rows]


@pytest.mark.parametrize("repetition", ["retry", "cut"])
def test_a_text_without_a_loop_is_the_same_with_the_guard_and_without(repetition) -> None:
    guard_off, guard_on = _Reader([GOOD] * 3), _Reader([GOOD] * 3)
    assert guarded(guard_on, 3, _text, repetition) == guarded(guard_off, 3, _text, "keep")
    assert len(guard_on.asked) == len(guard_off.asked) == 1


def test_only_the_text_with_a_loop_is_read_again() -> None:
    good = Reading("good", (), GOOD)
    reader = _Reader([GOOD, LOOP, GOOD], {RETRIES[0]: good})
    readings = guarded(reader, 3, _text, "retry")
    assert [rows for rows, _ in reader.asked] == [[0, 1, 2], [1]]
    assert [reading.text for reading in readings] == [_text(GOOD), "good", _text(GOOD)]
    assert [reading.attempts for reading in readings] == [1, 2, 1]
    assert [reading.finish_reason for reading in readings] == ["stop"] * 3


def test_loops_of_all_groups_are_read_again_together_and_never_more_at_a_time_than_a_group() -> None:
    texts = [LOOP if item in (0, 3, 5, 7, 8) else GOOD for item in range(10)]
    reader = _Reader(texts, {RETRIES[1]: Reading("good", (), GOOD)})
    readings = guarded(reader, 10, _text, "retry", together=4)
    groups = {decoding: [rows for rows, asked in reader.asked if asked == decoding] for decoding in (WATCHED, *RETRIES)}
    assert groups[WATCHED] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert groups[RETRIES[0]] == groups[RETRIES[1]] == [[0, 3, 5, 7], [8]]
    assert [reading.text for reading in readings] == ["good" if own is LOOP else _text(GOOD) for own in texts]


def test_what_loops_whatever_is_tried_is_cut_to_one_copy_and_says_so() -> None:
    reader = _Reader([LOOP])
    (reading,) = guarded(reader, 1, _text, "retry")
    assert [decoding for _, decoding in reader.asked[1:]] == list(RETRIES)
    assert reading.ids == (1, 2, 3, 7, 8, 9)
    assert reading.text == _text(reading.ids)
    assert (reading.finish_reason, reading.attempts) == ("repetition", 1 + len(RETRIES))


def test_a_retry_that_does_not_come_to_its_end_is_no_remedy() -> None:
    unending = Reading("unending", (), GOOD, "length")
    reader = _Reader([LOOP], {RETRIES[0]: unending, RETRIES[1]: unending})
    (reading,) = guarded(reader, 1, _text, "retry")
    assert reading.finish_reason == "repetition"


@pytest.mark.parametrize("helps", [True, False])
def test_all_attempts_are_counted_and_what_one_saves_another_was_not_kept_before(helps: bool) -> None:
    def read(items: Sequence[int], decoding: Decoding) -> list[Reading]:
        first = not decoding.no_repeat_ngram_size
        ids = (1, 2, 3) if helps and not first else (1, 2) * 20
        return [Reading("", (), ids, "stop", prompt_tokens=100 if first else 10, cached_tokens=0 if first else 90)]

    (reading,) = guarded(read, 1, _text, "retry")
    retries = 1 if helps else len(RETRIES)
    assert (reading.attempts, reading.prompt_tokens, reading.cached_tokens) == (1 + retries, 100 + 10 * retries, 0)


def test_cut_reads_nothing_again_and_keep_changes_nothing() -> None:
    reader = _Reader([LOOP])
    (cut,) = guarded(reader, 1, _text, "cut")
    (kept,) = guarded(reader, 1, _text, "keep")
    assert len(reader.asked) == 2
    assert reader.asked[1][1] == PLAIN
    assert cut.ids == (1, 2, 3, 7, 8, 9)
    assert kept.ids == LOOP


def test_another_word_for_it_is_refused() -> None:
    with pytest.raises(OptionError, match="choose one of retry, cut, keep"):
        check_repetition("often")
