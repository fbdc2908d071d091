"""Windows on their way to tokens."""

import io
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fastslm import MakeCheckpoint, noise

from fastslm.errors import AudioError, CutShortError, OptionError
from fastslm.features import extract_features
from fastslm.loading import load
from fastslm.longform.cuts import CUTS, Cuts
from fastslm.longform.encoder import WindowEncoder, fast_dtype
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


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_groups_side_by_side_come_in_their_order_and_change_nothing(tiny: FastSLM, workers: int) -> None:
    lengths = (10, 95, 1, 130)
    sources = [(f"{seconds}", noise(seconds, index)) for index, seconds in enumerate(lengths)]
    encoder = WindowEncoder(tiny.model, workers=workers)
    memories = list(encoder.encode_many(sources))
    assert [memory.facts.name for memory in memories] == [str(seconds) for seconds in lengths]
    for (_, recording), memory in zip(sources, memories, strict=True):
        windows = extract_features(recording, tiny.model.config.audio_config.num_mel_bins)
        expected = torch.cat([tiny.encoder.tokens(window) for window in windows.split(1)])
        assert torch.allclose(memory.tokens, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_of_many_recordings_each_is_told_from_its_start_to_its_end(tiny: FastSLM, workers: int) -> None:
    lengths = (10.0, 95.0, 1.0, 130.0)
    told: list[tuple[float, float | None]] = []
    sources = [(f"{seconds}", noise(seconds)) for seconds in lengths]
    encoder = WindowEncoder(tiny.model, workers=workers)
    list(
        encoder.encode_many(
            sources, on_progress=lambda progress: told.append((progress.seconds, progress.total_seconds))
        )
    )
    ends = [index for index, (seconds, total) in enumerate(told) if seconds == total]
    assert [told[index][1] for index in ends] == list(lengths)
    for first, last, length in zip([0, *(end + 1 for end in ends)], ends, lengths, strict=False):
        own = [seconds for seconds, _ in told[first : last + 1]]
        assert own == sorted(set(own))
        assert (own[0], own[-1]) == (0, length)
    assert ends[-1] == len(told) - 1


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

    monkeypatch.setattr("fastslm.longform.hearing.stream_audio", windows)
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


# Cuts


@pytest.mark.parametrize("cuts", CUTS)
def test_times_are_true_whatever_the_cuts(tiny: FastSLM, cuts: Cuts) -> None:
    recording = noise(100)
    for second in (27, 55):
        recording[second * 16_000 : second * 16_000 + 6000] = 0
    memory = tiny.encoder.encode(recording, cuts=cuts)
    assert memory.times[0, 0] == 0
    assert memory.times[-1, 1] == 100
    assert torch.equal(memory.times[1:, 0], memory.times[:-1, 1])
    for (start, end), tokens in zip(memory.times.tolist(), memory.tokens, strict=True):
        alone = tiny.encode(recording[round(start * 16_000) : round(end * 16_000)]).tokens[0]
        assert torch.allclose(alone, tokens, atol=1e-4, rtol=0)
    first = memory.times[0, 1].item()
    assert first == 30 if cuts == "fixed" else 27 < first < 27.375


def test_quiet_cuts_are_refused_where_the_mel_is_the_whole_files(make_checkpoint: MakeCheckpoint) -> None:
    encoder = load(make_checkpoint(mel_mode="authors"), quiet=True).encoder
    with pytest.raises(OptionError, match="use fixed cuts"):
        encoder.encode("missing.wav", cuts="quiet")


# bfloat16


def test_a_compute_dtype_is_that_of_the_tokens_and_costs_only_its_own_rounding(tiny: FastSLM) -> None:
    exact = tiny.encode(noise(70)).tokens
    memory = WindowEncoder(tiny.model, dtype=torch.bfloat16).encode(noise(70))
    assert memory.tokens.dtype is torch.bfloat16
    assert memory.facts == tiny.encode(noise(70)).facts
    # 8 bits of mantissa through a dozen layers: a few of its steps of 2⁻⁸, of numbers as large as these.
    difference = (memory.tokens.float() - exact).abs().max()
    assert 0 < difference < 16 * 2**-8 * exact.abs().max()


@pytest.mark.parametrize(("amx", "avx"), [(True, True), (False, True), (False, False)])
def test_bfloat16_is_for_processors_that_multiply_it(monkeypatch, amx: bool, avx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    dtype, reason = fast_dtype(torch.device("cpu"))
    assert dtype is (torch.bfloat16 if amx or avx else None)
    assert reason


# Files that are not what they were


def _grow(file: Path) -> None:
    with file.open("ab") as more:
        more.write(bytes(1000))


def _shrink(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.replace(other, file)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("change", [_grow, _shrink, _replace])
def test_a_file_that_changes_while_it_is_read_is_a_sentence_and_what_was_made_of_it_is_deleted(
    tiny: FastSLM, tmp_path: Path, encode, change: Callable[[Path], None], strict: bool
) -> None:
    file, kept = encode(tmp_path / "other.wav", noise(300)), tmp_path / "kept"
    encoder = WindowEncoder(tiny.model, 2)
    seen = 0

    def once(progress: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:  # the first groups are kept by then
            assert kept.exists()
            change(file)

    with pytest.raises(AudioError, match=r"other\.wav changed while it was read"):
        encoder.encode(file, kept_at=kept, strict=strict, on_progress=once)
    assert not kept.exists()


@pytest.mark.fault
def test_what_breaks_off_is_encoded_as_what_is_there_of_it_alone_and_marked_unless_that_is_refused(
    tiny: FastSLM, tmp_path: Path, encode
) -> None:
    file = encode(tmp_path / "a.wav", noise(70))
    file.write_bytes(file.read_bytes()[: -20 * 32_000])
    with pytest.raises(CutShortError, match=r"50\.0 s of sound are there of 70\.0 s"):
        tiny.encode(file, strict=True)
    memory = tiny.encode(file)
    whole = tiny.encode(encode(tmp_path / "b.wav", noise(70)[: 50 * 16_000]))
    assert torch.equal(memory.tokens, whole.tokens)
    assert memory.facts.partial
    assert memory.facts.missing_seconds == pytest.approx(20, abs=0.01)
    assert not whole.facts.partial
    assert whole.facts.missing_seconds is None
    (transcript,) = tiny.transcribe_many([file])
    assert transcript.partial
    assert transcript.missing_seconds == memory.facts.missing_seconds
    assert transcript.as_dict()["missing_seconds"] == 20
    with pytest.raises(CutShortError):
        list(tiny.transcribe_many([file], strict=True))


class _Broken(io.BytesIO):
    """A stream whose other side goes away."""

    def __init__(self, content: bytes, after: int = 200_000):
        super().__init__(content)
        self.after = after

    def read(self, size: int = -1) -> bytes:
        if self.after < self.tell() < self.getbuffer().nbytes - 70_000:  # its end is looked at first
            raise ConnectionResetError(104, "Connection reset by peer")
        return super().read(size)


def test_a_stream_that_stops_is_a_sentence(tiny: FastSLM, tmp_path: Path, encode) -> None:
    file = encode(tmp_path / "a.flac", noise(70), codec="flac")
    with pytest.raises(AudioError, match=r"stopped after [\d.]+ s of sound while it was read \(Connection reset"):
        tiny.encoder.encode(_Broken(file.read_bytes()))


def test_what_was_done_when_a_read_failed_is_kept_for_the_next_time(tiny: FastSLM, tmp_path: Path, encode) -> None:
    content, kept = encode(tmp_path / "a.wav", noise(200)).read_bytes(), tmp_path / "kept"
    with pytest.raises(AudioError, match="Connection reset"):
        tiny.encoder.encode(_Broken(content, after=5_000_000), kept_at=kept)
    assert kept.exists()
    expected = tiny.encode(io.BytesIO(content))
    assert torch.equal(tiny.encode(io.BytesIO(content), kept_at=kept).tokens, expected.tokens)


@pytest.mark.parametrize(("own", "asked"), [("float32", "float64"), ("bfloat16", "float32"), ("bfloat16", "float16")])
def test_a_dtype_that_is_no_narrower_is_refused(make_checkpoint: MakeCheckpoint, own: str, asked: str) -> None:
    model = load(make_checkpoint(), dtype=own, quiet=True).model
    with pytest.raises(OptionError, match=f"cannot compute in {asked}.*the model's {own}"):
        WindowEncoder(model, dtype=getattr(torch, asked))


def test_a_name_that_no_file_can_have_is_a_sentence(tiny: FastSLM) -> None:
    with pytest.raises(AudioError, match="cannot be opened"):
        tiny.encode("n" * 300)
