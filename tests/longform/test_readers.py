"""What reads windows: Whisper's decoder with budgets of each row's own, and the times of its words."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from long_memory import long_memory
from tiny_fastslm import WIDTH, MakeCheckpoint

from fastslm.errors import OptionError
from fastslm.loading import load
from fastslm.longform.generation import Decoding
from fastslm.longform.readers import SILENT, CTCReader, WhisperDecoderReader, hears_letters, reader_named
from fastslm.longform.timestamps import SPACE
from fastslm.longform.transcription import Transcriber, TranscriptionOptions
from fastslm.model import whisper_decoder
from fastslm.model.ctc_head import BLANK, greedy_words

END = 2


@pytest.fixture(scope="module")
def speech(make_checkpoint: MakeCheckpoint) -> Any:
    """A model whose decoder's weights are so large that what it hears decides what it writes."""
    speech = load(make_checkpoint(reader=True, transcript_reader="whisper"), dtype="float32", quiet=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in speech.model.reader.named_parameters():
            if parameter.dim() == 2 and not name.startswith("unfold.context"):
                parameter.normal_(0.0, 0.4, generator=generator)
    return speech


@pytest.fixture(scope="module")
def looping(make_checkpoint: MakeCheckpoint) -> Any:
    """A model whose decoder writes the same again and again, as small random weights do."""
    return load(make_checkpoint(reader=True, transcript_reader="whisper"), dtype="float32", quiet=True)


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
    monkeypatch.setattr(whisper_decoder, "STAYING", 0.0)
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


def test_a_loop_is_ended_where_that_is_asked_for(looping: Any) -> None:
    reader = WhisperDecoderReader(looping.model, looping.processor)
    (free,) = reader.read(some_tokens(1), [30.0], [200])
    (watched,) = reader.read(some_tokens(1), [30.0], [200], Decoding(stop_at_loop=True))
    assert len(watched.ids) < len(free.ids) == 200
    assert free.ids[: len(watched.ids)] == watched.ids
    assert watched.finish_reason == "length"


@pytest.mark.parametrize("silent", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_windows_without_a_letter_are_silent_and_change_no_other(
    speech: Any, silent: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, hear = speech.model.ctc_head, speech.model.ctc_head.forward

    def letters(frames: torch.Tensor) -> torch.Tensor:
        found = hear(frames)
        found[..., 5] = 9.0
        found[list(silent), :, BLANK] = 10.0
        return found

    monkeypatch.setattr(head, "forward", letters)
    reader = WhisperDecoderReader(speech.model, speech.processor)
    windows = some_tokens(3), [30.0, 4.0, 12.5], [10, 20, 30]
    read = reader.read(*windows)
    assert all(reading.text for reading in read)
    expected = [SILENT if row in silent else reading for row, reading in enumerate(read)]
    assert reader.read(*windows, no_speech="skip") == expected


@given(st.integers(0, 10**6), st.floats(0.05, 30.0))
def test_a_letter_is_heard_where_the_greedy_words_of_the_sound_are_some(seed: int, end: float) -> None:
    scores = torch.randn(8, 40, 29, generator=torch.Generator().manual_seed(seed))
    # Letters are rare, so that windows without any are not.
    scores[..., BLANK] += 4.5
    scores[..., SPACE] += 3
    words = [[word for word in greedy_words(own, 30.0) if word.start < end] for own in scores]
    assert hears_letters(scores, [end] * 8) == [row for row, own in enumerate(words) if own]


def test_texts_do_not_depend_on_how_many_windows_are_read_together(speech: Any) -> None:
    memory = long_memory(speech, 9, torch.randn(50, WIDTH))
    memory.tokens[:] = torch.randn(9, 50, WIDTH, generator=torch.Generator().manual_seed(1))
    options = TranscriptionOptions(max_new_tokens=25)
    found = [
        next(Transcriber(speech.model, speech.processor, together).transcribe(iter([memory]), options)).segments
        for together in (1, 4, None)
    ]
    for other in found[1:]:
        assert [segment.text for segment in other] == [segment.text for segment in found[0]]
        assert [segment.finish_reason for segment in other] == [segment.finish_reason for segment in found[0]]
    assert len({segment.text for segment in found[0]}) > 1, "all windows say the same"


def test_auto_is_the_reader_that_the_configuration_names(speech: Any, tiny: Any) -> None:
    assert reader_named("auto", speech.model) is WhisperDecoderReader
    assert reader_named("auto", tiny.model) is CTCReader
    with pytest.raises(OptionError, match="no Whisper decoder with its unfolder: choose the decoder ctc"):
        reader_named("whisper", tiny.model)


def test_the_option_may_be_called_by_its_old_name() -> None:
    assert TranscriptionOptions(reader="llm").decoder == "llm"
    assert TranscriptionOptions(decoder="ctc", reader="ctc").decoder == "ctc"
    with pytest.raises(OptionError, match="'ctc' and reader 'llm' are the same option"):
        TranscriptionOptions(decoder="ctc", reader="llm")
