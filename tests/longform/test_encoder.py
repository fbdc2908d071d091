"""Windows on their way to tokens."""

import weakref

import numpy as np
import pytest
import torch
from tiny_fastslm import noise

from fastslm.errors import AudioError
from fastslm.longform.encoder import SILENCE_DBFS, WindowEncoder, is_silent
from fastslm.speech import FastSLM


@pytest.mark.parametrize("group", [1, 3, 8, 100])
def test_the_size_of_a_group_changes_nothing(tiny: FastSLM, group: int) -> None:
    recording = noise(130)
    memory = WindowEncoder(tiny.model, group).encode(recording)
    expected = tiny.encode(recording)
    assert torch.allclose(memory.tokens, expected.tokens, atol=1e-4, rtol=0)
    assert memory.facts == expected.facts
    for own, other in zip(tiny.transcribe(memory).segments, tiny.transcribe(expected).segments, strict=True):
        assert (own.start, own.end, own.text) == (other.start, other.end, other.text)
        # Groups of other sizes round otherwise: probabilities agree as closely as the tokens do, not to the last bit.
        for a, b in zip(own.words, other.words, strict=True):
            assert (a.text, a.start, a.end) == (b.text, b.start, b.end)
            assert a.log_probability == pytest.approx(b.log_probability, abs=1e-4)


def test_window_times_cover_the_recording_without_gap_or_overlap(tiny: FastSLM) -> None:
    times = tiny.encode(noise(61.25)).times
    assert times[0, 0] == 0
    assert times[-1, 1] == 61.25
    assert torch.equal(times[1:, 0], times[:-1, 1])


def test_only_a_group_of_windows_is_ever_held(tiny: FastSLM, monkeypatch) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def windows(*arguments: object, **options: object):
        nonlocal most
        for index in range(10):
            window = noise(30, index)
            alive.append(weakref.ref(window))
            yield window
            del window
            most = max(most, sum(reference() is not None for reference in alive))

    monkeypatch.setattr("fastslm.longform.encoder.stream_audio", windows)
    memory = WindowEncoder(tiny.model, 4).encode("any.wav")
    assert len(memory.tokens) == 10
    assert most <= 1
    assert memory.tokens.untyped_storage().nbytes() == memory.tokens.nbytes


def test_several_recordings_keep_their_names_order_and_hashes(tiny: FastSLM) -> None:
    sources = [(f"clip {index}", noise(20 * index + 1, index)) for index in range(5)]
    together = list(tiny.encoder.encode_many(sources))
    assert [memory.facts.name for memory in together] == [name for name, _ in sources]
    for memory, (name, samples) in zip(together, sources, strict=True):
        assert memory.facts == tiny.encoder.encode(samples, name=name).facts


def test_the_hash_is_that_of_the_sound_not_of_the_file(tiny: FastSLM, tmp_path, encode) -> None:
    file = encode(tmp_path / "a.wav", noise(2), codec="pcm_f32le")
    assert tiny.encode(file).facts.audio_sha256 == tiny.encode(noise(2)).facts.audio_sha256
    assert tiny.encode(file).facts.audio_sha256 != tiny.encode(noise(2, 1)).facts.audio_sha256


def test_a_bad_recording_among_many_is_an_error_not_a_gap(tiny: FastSLM) -> None:
    with pytest.raises(AudioError):
        list(tiny.encoder.encode_many([("good", noise(1)), ("bad", noise(0.01))]))


@pytest.mark.parametrize(("above", "silent"), [(-6, True), (6, False)])
def test_silence_is_what_stays_below_its_level_in_every_half_second(above: float, silent: bool) -> None:
    level = 10 ** ((SILENCE_DBFS + above) / 20)
    samples = np.zeros(160_000, np.float32)
    samples[80_000:88_000] = level
    assert is_silent(samples) is silent
