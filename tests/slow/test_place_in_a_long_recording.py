"""The same words and answers anywhere in three hours as in the clip alone, with the model that comes with fastslm."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from orders import order_questions

import fastslm
from fastslm.audio import SAMPLE_RATE
from fastslm.data.manifest import Clip, read_manifest
from fastslm.longform.encoder import WindowEncoder
from fastslm.longform.memory import MemoryFacts, SpeechMemory
from fastslm.prompts import NOT_MENTIONED
from fastslm.speech import FastSLM

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[3] / "shared" / "data"
WINDOWS = 360
PART_WINDOWS = 20
KINDS = ("size", "roast", "shots")
ORDERED = {"size", "roast"}


def _clips(count: int) -> list[io.BytesIO]:
    manifest = DATA / "librispeech" / "test.jsonl"
    if not manifest.is_file():
        pytest.skip("the speech corpus is not beside the repository")
    clips = []
    for line in manifest.read_text(encoding="utf-8").splitlines()[:count]:
        audio = json.loads(line)["audio"]
        with (DATA / audio["path"]).open("rb") as file:
            file.seek(audio["offset"])
            clips.append(io.BytesIO(file.read(audio["length"])))
    return clips


def _three_hours(
    around: list[torch.Tensor], tokens: torch.Tensor, place: int, seconds: float, like: SpeechMemory
) -> SpeechMemory:
    """The windows around over and over, (50, hidden) each, one of them replaced; as a file of them would be encoded."""
    windows = torch.stack([around[index % len(around)] for index in range(WINDOWS)])
    windows[place] = tokens
    lengths = torch.full((WINDOWS,), 30.0, dtype=torch.float64)
    lengths[place] = seconds
    ends = lengths.cumsum(0)
    facts = MemoryFacts(like.facts.token_fingerprint, "three hours", float(ends[-1]), "")
    silent = torch.zeros(WINDOWS, dtype=torch.bool)
    return SpeechMemory(windows, torch.stack([ends - lengths, ends], 1), silent, facts)


@pytest.fixture(scope="module")
def model() -> FastSLM:
    return fastslm.load("fastslm-tiny", quiet=True)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_clip_in_three_hours_reads_as_it_does_alone(model: FastSLM, share: float) -> None:
    clip, *others = (model.encode(clip) for clip in _clips(4))
    alone = model.transcribe(clip)
    assert alone.text
    place = round(share * WINDOWS)
    memory = _three_hours([own.tokens[0] for own in others], clip.tokens[0], place, clip.duration, clip)
    found = model.transcribe(memory).segments[place]
    assert found.text == alone.text
    assert found.start == pytest.approx(30.0 * place)
    assert found.end - found.start == pytest.approx(clip.duration)


@pytest.fixture(scope="module")
def speech() -> list[Clip]:
    manifest = DATA / "librispeech" / "test.jsonl"
    if not manifest.is_file():
        pytest.skip("the speech corpus is not beside the repository")
    return read_manifest(manifest)


@pytest.fixture(scope="module")
def around(model: FastSLM, speech: list[Clip]) -> list[torch.Tensor]:
    """Five minutes of read speech as windows: a number of them that divides the parts' makes equal parts."""
    pause = np.zeros(round(0.6 * SAMPLE_RATE), np.float32)
    clips = iter(speech)
    sound: list[np.ndarray] = []
    while sum(map(len, sound)) < 11 * 30 * SAMPLE_RATE:
        sound += [next(clips).read(), pause]
    return list(model.encode(np.concatenate(sound), sampling_rate=SAMPLE_RATE).tokens[: PART_WINDOWS // 2])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_an_order_in_three_hours_is_answered_from_the_part_that_says_it(
    model: FastSLM, speech: list[Clip], around: list[torch.Tensor], share: float
) -> None:
    """What this model can do: parts of 10 minutes, and what its training taught it to call not mentioned.

    By default parts are as long as the positions allow, an hour, of which it was not taught; and it names a drink
    in any part, whether or not one is ordered (docs/benchmarks.md).
    """
    order = next(clip for clip in read_manifest(DATA / "coffee" / "test.jsonl") if set(clip.slots or ()) >= ORDERED)
    before, after = [clip for clip in speech if clip.duration < 9][:2]
    pause = np.zeros(round(0.6 * SAMPLE_RATE), np.float32)
    sound = np.concatenate([before.read(), pause, order.read(), pause, after.read()])
    spoken = model.encode(sound, sampling_rate=SAMPLE_RATE, cuts="fixed")
    assert len(spoken.tokens) == 1
    place = round(share * WINDOWS)
    memory = _three_hours(around, spoken.tokens[0], place, 30.0, spoken)
    for question, answer, kind in order_questions(order.slots or {}, kinds=KINDS):
        found = model.ask(memory, question, span_seconds=PART_WINDOWS * 30)
        assert found.usage.method == "map_reduce"
        assert found.text.strip(" .").lower() == answer, kind
        part = 30.0 * PART_WINDOWS * (place // PART_WINDOWS)
        spans = [(span.start, span.end) for span in found.spans]
        assert spans == ([] if answer == NOT_MENTIONED else [(part, part + 30 * PART_WINDOWS)])


def test_one_by_one_and_all_together_recordings_read_the_same_in_what_the_processor_computes_best(
    model: FastSLM,
) -> None:
    clips = _clips(12)
    alone = [model.transcribe(clip).text for clip in clips]
    for clip in clips:
        clip.seek(0)
    assert [transcript.text for transcript in model.transcribe_many(clips)] == alone


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_the_size_of_a_group_changes_no_token_in_what_the_processor_computes_best(model: FastSLM, group: int) -> None:
    clips = [(str(index), clip) for index, clip in enumerate(_clips(8))]
    expected = [memory.tokens for memory in model.encoder.encode_many(clips)]
    for _, clip in clips:
        clip.seek(0)
    other = WindowEncoder(model.model, group_windows=group, dtype=model.encoder.dtype)
    for memory, tokens in zip(other.encode_many(clips), expected, strict=True):
        # Bits in bfloat16; in float32 the order of sums may follow the batch.
        torch.testing.assert_close(memory.tokens, tokens, atol=0 if model.encoder.dtype else 1e-4, rtol=0)
