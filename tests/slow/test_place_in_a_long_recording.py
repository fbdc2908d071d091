"""The same words at any place of three hours as in the clip alone, with the model that comes with fastslm."""

import io
import json
from pathlib import Path

import pytest
import torch

import fastslm
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
