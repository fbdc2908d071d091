"""The same words at any place of three hours as in the clip alone, with the model that comes with fastslm."""

import io
import json
from pathlib import Path

import pytest
import torch

import fastslm
from fastslm.longform.encoder import WindowEncoder
from fastslm.longform.memory import MemoryFacts, SpeechMemory
from fastslm.speech import FastSLM

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[3] / "shared" / "data"
WINDOWS = 360


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


@pytest.fixture(scope="module")
def model() -> FastSLM:
    return fastslm.load("fastslm-tiny", quiet=True)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_clip_in_three_hours_reads_as_it_does_alone(model: FastSLM, share: float) -> None:
    clip, *others = (model.encode(clip) for clip in _clips(4))
    alone = model.transcribe(clip)
    assert alone.text
    place = round(share * WINDOWS)
    tokens = torch.cat([others[index % len(others)].tokens[:1] for index in range(WINDOWS)])
    tokens[place] = clip.tokens[0]
    seconds = torch.full((WINDOWS,), 30.0, dtype=torch.float64)
    seconds[place] = clip.duration
    ends = seconds.cumsum(0)
    facts = MemoryFacts(clip.facts.token_fingerprint, "three hours", float(ends[-1]), "")
    silent = torch.zeros(WINDOWS, dtype=torch.bool)
    memory = SpeechMemory(tokens, torch.stack([ends - seconds, ends], 1), silent, facts)
    found = model.transcribe(memory).segments[place]
    assert found.text == alone.text
    assert found.start == pytest.approx(30.0 * place)
    assert found.end - found.start == pytest.approx(clip.duration)


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
