"""What reads windows: Whisper's decoder with budgets of each row's own, and the times of its words."""

from typing import Any

import pytest
import torch
from tiny_fastslm import WIDTH, MakeCheckpoint

from fastslm.errors import OptionError
from fastslm.loading import load
from fastslm.longform.generation import Decoding
from fastslm.longform.readers import CTCReader, WhisperDecoderReader, reader_named
from fastslm.model import whisper_reader

END = 2


@pytest.fixture(scope="module")
def speech(make_checkpoint: MakeCheckpoint) -> Any:
    return load(make_checkpoint(reader=True, transcript_reader="whisper"), quiet=True)


@pytest.fixture
def reader(speech: Any, monkeypatch: pytest.MonkeyPatch) -> WhisperDecoderReader:
    """Its decoder writes letters, and ends its three rows after 3, 50 and 12 of them."""
    written = 0

    def scores(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal written
        found = torch.zeros(len(hidden), 100)
        for row, end in enumerate((3, 50, 12)):
            found[row, END if written == end else 40 + written % 26] = 9.0
        written += 1
        return found

    monkeypatch.setattr(speech.model.reader, "next_scores", scores)
    # All rows stay in their places.
    monkeypatch.setattr(whisper_reader, "STAYING", 0.0)
    return WhisperDecoderReader(speech.model, speech.processor)


def some_tokens(windows: int) -> torch.Tensor:
    return torch.randn(windows, 50, WIDTH, generator=torch.Generator().manual_seed(0))


def test_a_row_that_its_budget_ended_says_so_though_others_go_on(reader: WhisperDecoderReader) -> None:
    found = reader.read(some_tokens(3), [30.0] * 3, [10, 20, 30])
    assert [len(reading.ids) for reading in found] == [3, 20, 12]
    # The second is filled up with the end token, which it did not write.
    assert [reading.finish_reason for reading in found] == ["stop", "length", "stop"]


def test_an_end_that_is_the_last_token_of_the_budget_is_an_end(reader: WhisperDecoderReader) -> None:
    found = reader.read(some_tokens(3), [30.0] * 3, [4, 20, 12])
    assert [reading.finish_reason for reading in found] == ["stop", "length", "length"]


def test_a_readings_words_are_those_of_its_text_and_end_with_the_sound(speech: Any) -> None:
    reader = WhisperDecoderReader(speech.model, speech.processor)
    seconds = [30.0, 4.0, 12.5]
    for reading, end in zip(reader.read(some_tokens(3), seconds, [40] * 3), seconds, strict=True):
        assert " ".join(word.text for word in reading.words) == " ".join(reading.text.split())
        assert all(0 <= word.start <= word.end <= end for word in reading.words)
        assert reading.text == reader.text_of(reading.ids)


def test_a_loop_is_ended_where_that_is_asked_for(speech: Any) -> None:
    reader = WhisperDecoderReader(speech.model, speech.processor)
    (free,) = reader.read(some_tokens(1), [30.0], [200])
    (watched,) = reader.read(some_tokens(1), [30.0], [200], Decoding(stop_at_loop=True))
    assert len(watched.ids) < len(free.ids) == 200
    assert free.ids[: len(watched.ids)] == watched.ids
    assert watched.finish_reason == "length"


def test_auto_is_the_reader_that_the_configuration_names(speech: Any, tiny: Any) -> None:
    assert reader_named("auto", speech.model) is WhisperDecoderReader
    assert reader_named("auto", tiny.model) is CTCReader
    with pytest.raises(OptionError, match="no unfolder for Whisper's decoder to read with: choose the reader ctc"):
        reader_named("whisper", tiny.model)
