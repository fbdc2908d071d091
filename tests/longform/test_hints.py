"""A prompt and hotwords: what the reader is told, and that nothing of it is in the transcript."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_fastslm import CONTEXT, MakeCheckpoint, noise
from tiny_reader import PREVIOUS

from fastslm.cli import run
from fastslm.errors import OptionError
from fastslm.loading import load
from fastslm.longform import readers
from fastslm.speech import FastSLM

pytestmark = pytest.mark.fault

PROMPT, HOTWORDS = "  Anneliese met Mr. Quilter. ", "Quilter, Tyrol"


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(reader=True, transcript_reader="whisper")


@pytest.fixture(scope="module")
def speech(checkpoint: Path) -> Any:
    """A model whose decoder's weights are so large that what it is told and hears decides what it writes."""
    speech: Any = load(checkpoint, dtype="float32", quiet=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in speech.model.reader.named_parameters():
            if parameter.dim() == 2 and not name.startswith("unfold.context"):
                parameter.normal_(0.0, 0.4, generator=generator)
    return speech


@pytest.fixture
def begun(speech: Any):
    """`begun(**options)`: the ids that the decoder is first given, one list for each window that is read."""

    def call(*sources: np.ndarray, **options: Any) -> list[list[int]]:
        given: list[torch.Tensor] = []
        hook = speech.model.reader.decoder.register_forward_pre_hook(
            lambda _, __, inputs: given.append(inputs["input_ids"]), with_kwargs=True
        )
        try:
            list(speech.transcribe_many(sources or [noise(2.0)], max_new_tokens=3, repetition="keep", **options))
        finally:
            hook.remove()
        return given[0].tolist()

    return call


def ids_of(speech: Any, text: str) -> list[int]:
    """The letters of a text after a space, as both openai/whisper and faster-whisper encode a prompt."""
    return speech.model.reader.tokenizer.convert_tokens_to_ids(list(f" {text}"))


def previous(speech: Any) -> int:
    return speech.model.reader.tokenizer.convert_tokens_to_ids(PREVIOUS)


def test_a_prompt_stands_before_the_start_of_every_window_as_in_whisper(speech: Any, begun: Any) -> None:
    start = speech.model.reader.start
    assert begun() == [start]
    told = [previous(speech), *ids_of(speech, "Anneliese met Mr. Quilter."), *start]
    assert begun(prompt=PROMPT) == [told]
    # 45 s are two windows, and short recordings share a batch.
    assert begun(noise(45.0), noise(1.0), prompt=PROMPT) == [told] * 3


def test_hotwords_stand_before_the_prompt_as_in_faster_whisper(speech: Any, begun: Any) -> None:
    whisper = pytest.importorskip("faster_whisper")
    reader = speech.model.reader
    tokenizer = SimpleNamespace(
        sot_prev=previous(speech),
        encode=lambda text: reader.tokenizer(text, add_special_tokens=False)["input_ids"],
        sot_sequence=reader.start[:-1],
        no_timestamps=reader.start[-1],
    )
    for prompt, hotwords in (
        (None, HOTWORDS),
        (PROMPT, HOTWORDS),
        (PROMPT, None),
        (None, "w" * 400),
        ("p" * 400, None),
    ):
        theirs = whisper.WhisperModel.get_prompt(
            SimpleNamespace(max_length=448),
            tokenizer,
            tokenizer.encode(f" {prompt.strip()}") if prompt else [],
            without_timestamps=True,
            hotwords=hotwords,
        )
        assert begun(prompt=prompt, hotwords=hotwords) == [theirs]


@pytest.mark.parametrize("length", [222, 223, 300])
def test_the_last_223_tokens_of_a_prompt_are_read_and_more_is_warned_of(speech: Any, begun: Any, length: int) -> None:
    prompt = "".join(chr(97 + index % 26) for index in range(length - 1))  # and the space before it
    (ids,) = begun(prompt=prompt)
    assert ids == [previous(speech), *ids_of(speech, prompt)[-223:], *speech.model.reader.start]
    warnings = speech.transcribe(noise(1.0), prompt=prompt, max_new_tokens=3).warnings
    told = [sentence for sentence in warnings if sentence.startswith("The prompt of 300 tokens is too long")]
    assert len(told) == (length > 223)
    assert all("the last 223" in sentence for sentence in told)


def test_hotwords_and_a_prompt_share_the_room(speech: Any, begun: Any) -> None:
    (ids,) = begun(prompt="p" * 300, hotwords="w" * 99)
    start = speech.model.reader.start
    assert ids == [previous(speech), *ids_of(speech, "w" * 99), *ids_of(speech, "p" * 300)[-123:], *start]
    (ids,) = begun(prompt="p" * 10, hotwords="w" * 300)
    assert ids == [previous(speech), *ids_of(speech, "w" * 222), *start]
    warnings = speech.transcribe(noise(1.0), prompt="p" * 10, hotwords="w" * 300, max_new_tokens=3).warnings
    assert sum("first 223 are read" in sentence for sentence in warnings) == 1
    assert sum("The prompt of 11 tokens is too long, none of which" in sentence for sentence in warnings) == 1


def test_nothing_told_is_in_the_text_and_what_is_told_changes_it(speech: Any) -> None:
    plain = speech.transcribe(noise(2.0), max_new_tokens=20)
    told = speech.transcribe(noise(2.0), max_new_tokens=20, prompt=PROMPT, hotwords=HOTWORDS)
    assert plain.text != told.text
    assert "Quilter" not in told.text
    assert told.usage.text_tokens <= 20
    assert told.options["prompt"] == PROMPT.strip()
    assert told.options["hotwords"] == HOTWORDS


def test_each_recording_among_others_is_read_as_alone(speech: Any) -> None:
    sounds = [noise(seconds, seed) for seed, seconds in enumerate((2.0, 33.0, 1.0))]
    options: dict[str, Any] = {"max_new_tokens": 12, "prompt": PROMPT, "hotwords": HOTWORDS}
    together = [found.text for found in speech.transcribe_many(sounds, **options)]
    assert together == [speech.transcribe(sound, **options).text for sound in sounds]
    assert len(set(together)) > 1


@pytest.mark.parametrize("empty", ["", "  \n\t ", None])
def test_an_empty_prompt_is_none(speech: Any, begun: Any, empty: str | None) -> None:
    assert begun(prompt=empty, hotwords=empty) == [speech.model.reader.start]
    plain, given = (
        speech.transcribe(noise(2.0), max_new_tokens=20, **options).as_dict()
        for options in ({}, {"prompt": empty, "hotwords": empty})
    )
    for found in (plain, given):
        del found["usage"]
    assert plain == given


def test_a_text_that_is_written_again_is_not_held_against_the_prompt(speech: Any, monkeypatch) -> None:
    seen: list[int] = []

    class Watching:
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(ids.shape[1])
            return scores

    monkeypatch.setattr(readers, "_processors", lambda decoding: [Watching()])
    speech.transcribe(noise(2.0), max_new_tokens=3, repetition="keep", prompt=PROMPT)
    begin = len(speech.model.reader.start)
    assert seen[:3] == [begin, begin + 1, begin + 2]


def test_a_budget_counts_what_is_written_alone(speech: Any) -> None:
    plain = speech.transcribe(noise(2.0), max_new_tokens=7, repetition="keep")
    told = speech.transcribe(noise(2.0), max_new_tokens=7, repetition="keep", prompt="p" * 300)
    assert {plain.usage.text_tokens, told.usage.text_tokens} <= {*range(8)}
    # Where the positions end before the budget does, that is said.
    told = speech.transcribe(noise(2.0), max_new_tokens=10_000, repetition="keep", prompt="p" * 300)
    room = 448 - 1 - 223 - len(speech.model.reader.start)
    assert told.usage.text_tokens <= room
    assert (told.finish_reason == "length") == (told.usage.text_tokens == room)


def test_a_stream_is_told_the_same(speech: Any) -> None:
    sound = noise(2.0)
    *_, last = speech.transcribe_stream([sound], prompt=PROMPT, max_new_tokens=12)
    assert last.segment.text == speech.transcribe(sound, prompt=PROMPT, max_new_tokens=12).text
    with pytest.warns(UserWarning, match="The prompt of 300 tokens is too long"):
        list(speech.transcribe_stream([sound], prompt="p" * 299, max_new_tokens=2))


@pytest.mark.parametrize("method", ["window", "context", "whole"])
def test_the_language_model_is_told_in_its_instruction(speech: Any, monkeypatch, method: str) -> None:
    told: list[str] = []
    plain = speech.processor.apply_chat_template

    def template(conversation: Any, **options: Any) -> str:
        told.append(conversation[0]["content"])
        return plain(conversation, **options)

    monkeypatch.setattr(speech.processor, "apply_chat_template", template)
    options: dict[str, Any] = {"reader": "llm", "method": method, "max_new_tokens": 3}
    plain_text = speech.transcribe(noise(2.0), **options)
    assert told[-1].endswith("Transcribe the audio clip into text.")
    told_text = speech.transcribe(noise(2.0), prompt=PROMPT, hotwords=HOTWORDS, **options)
    assert told[-1].endswith(
        "Transcribe the audio clip into text.\nContext: Anneliese met Mr. Quilter.\nWords that may be said: "
        "Quilter, Tyrol"
    )
    assert told_text.usage.prompt_tokens > plain_text.usage.prompt_tokens
    with pytest.raises(OptionError, match=f"up to {CONTEXT // 2} of the language model's"):
        speech.transcribe(noise(2.0), prompt="p" * CONTEXT, **options)


@pytest.mark.parametrize("option", ["prompt", "hotwords"])
def test_what_cannot_be_told_is_a_sentence_before_anything_is_encoded(
    tiny: FastSLM, speech: Any, monkeypatch, option: str
) -> None:
    for model in (tiny, speech):
        monkeypatch.setattr(model.encoder, "encode", lambda *_, **__: pytest.fail("it was encoded"))
    with pytest.raises(OptionError, match=f"{option} was given, but the decoder ctc writes no tokens: leave it out"):
        tiny.transcribe(noise(1.0), **{option: "Quilter"})
    for wrong, words in (
        (5, f"{option} is 5, a text is allowed"),
        (["Quilter"], f"{option} is "),
        ("<|endoftext|> Quilter", "control token"),
        ("half \ud83d", "no Unicode from its character 6"),
    ):
        with pytest.raises(OptionError, match=words):
            speech.transcribe(noise(1.0), **{option: wrong})


def test_a_decoder_without_the_token_for_it_refuses_a_prompt(speech: Any, monkeypatch) -> None:
    tokenizer = speech.model.reader.tokenizer
    plain = tokenizer.convert_tokens_to_ids
    lacking = lambda token: tokenizer.unk_token_id if token == PREVIOUS else plain(token)  # noqa: E731
    monkeypatch.setattr(tokenizer, "convert_tokens_to_ids", lacking)
    with pytest.raises(OptionError, match=re.escape("no token <|startofprev|>")):
        speech.transcribe(noise(1.0), prompt="Quilter")


def test_the_command_line_tells_the_same(
    speech: Any, checkpoint: Path, tmp_path: Path, encode, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: speech)
    talk = encode(tmp_path / "a.wav", noise(2.0))
    command = ["transcribe", str(talk), "--model", str(checkpoint), "--max-new-tokens", "12", "--json"]
    found = []
    for options in ([], ["--prompt", PROMPT, "--hotwords", HOTWORDS], ["--prompt", "  "]):
        assert run([*command, *options]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[1]["text"] == speech.transcribe(talk, prompt=PROMPT, hotwords=HOTWORDS, max_new_tokens=12).text
    assert found[1]["options"]["prompt"] == PROMPT.strip()
    assert found[0]["text"] == found[2]["text"] != found[1]["text"]
    assert run([*command[:4], "--reader", "ctc", "--hotwords", "Quilter"]) == 2
    assert "hotwords was given, but the decoder ctc writes no tokens" in capsys.readouterr().err
