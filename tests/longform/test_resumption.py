"""Encodings that are stopped go on to the same bits."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fastslm import noise

from fastslm.errors import FastSLMError
from fastslm.longform.encoder import WindowEncoder
from fastslm.longform.resumption import MAGIC, KeptGroups
from fastslm.speech import FastSLM

RECORDING = noise(250)


class Stopped(BaseException):
    """What a test stops an encoding with."""


@pytest.fixture
def encoder(tiny: FastSLM) -> WindowEncoder:
    """One group after another: what is finished at a stop does not hang on the moment."""
    return WindowEncoder(tiny.model, workers=1)


def _encode_until(encoder: WindowEncoder, kept: Path, seconds: float, recording: np.ndarray = RECORDING) -> None:
    def stop(progress) -> None:
        if progress.seconds >= seconds:
            raise Stopped

    with pytest.raises(Stopped):
        encoder.encode(recording, kept_at=kept, on_progress=stop)


def test_a_stopped_encoding_goes_on_where_it_was_to_the_same_bits(encoder: WindowEncoder, tmp_path: Path) -> None:
    kept = tmp_path / "talk.fslm.partial"
    _encode_until(encoder, kept, 240)
    seen: list[float] = []
    memory = encoder.encode(RECORDING, kept_at=kept, on_progress=lambda p: seen.append(p.seconds))
    expected = encoder.encode(RECORDING)
    assert seen[0] == 240
    assert torch.equal(memory.tokens, expected.tokens)
    assert torch.equal(memory.times, expected.times)
    assert torch.equal(memory.silent, expected.silent)
    assert memory.facts == expected.facts
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_of_groups_side_by_side_all_that_are_finished_in_order_are_kept(tiny: FastSLM, tmp_path: Path) -> None:
    kept, seen = tmp_path / "talk.fslm.partial", list[float]()
    many = WindowEncoder(tiny.model, workers=3)
    _encode_until(many, kept, 120)
    memory = many.encode(RECORDING, kept_at=kept, on_progress=lambda p: seen.append(p.seconds))
    assert seen[0] in (120, 180, 240, 300)
    assert torch.allclose(memory.tokens, tiny.encoder.encode(RECORDING).tokens, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lost", [1, 40, 5000])
def test_a_group_that_was_half_written_is_encoded_again(encoder: WindowEncoder, tmp_path: Path, lost: int) -> None:
    kept = tmp_path / "talk.fslm.partial"
    _encode_until(encoder, kept, 240)
    os.truncate(kept, kept.stat().st_size - lost)
    seen: list[float] = []
    memory = encoder.encode(RECORDING, kept_at=kept, on_progress=lambda p: seen.append(p.seconds))
    assert seen[0] == 180
    assert torch.equal(memory.tokens, encoder.encode(RECORDING).tokens)


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\xff" * 100, (1 << 40).to_bytes(8, "little") + b"x" * 100])
def test_what_a_power_cut_left_at_the_end_is_dropped(encoder: WindowEncoder, tmp_path: Path, tail: bytes) -> None:
    kept = tmp_path / "talk.fslm.partial"
    _encode_until(encoder, kept, 120)
    with kept.open("ab") as file:
        file.write(tail)
    seen: list[float] = []
    memory = encoder.encode(RECORDING, kept_at=kept, on_progress=lambda p: seen.append(p.seconds))
    assert seen[0] == 120
    assert torch.equal(memory.tokens, encoder.encode(RECORDING).tokens)


@pytest.mark.parametrize("content", [b"RIFF" + bytes(1000), b"x", MAGIC[:5] + b"x"])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(
    encoder: WindowEncoder, tmp_path: Path, content: bytes
) -> None:
    precious = tmp_path / "talk.wav"
    precious.write_bytes(content)
    with pytest.raises(FastSLMError, match=r"talk\.wav is no file of finished groups.*choose another place"):
        encoder.encode(RECORDING, kept_at=precious)
    assert precious.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [precious.name]  # no lock is left


@pytest.mark.parametrize("content", [b"", MAGIC[:5], MAGIC + b'{"cu'])
def test_a_file_that_was_only_begun_is_begun_again(encoder: WindowEncoder, tmp_path: Path, content: bytes) -> None:
    kept = tmp_path / "talk.fslm.partial"
    kept.write_bytes(content)
    _encode_until(encoder, kept, 120)
    seen: list[float] = []
    encoder.encode(RECORDING, kept_at=kept, on_progress=lambda p: seen.append(p.seconds))
    assert seen[0] == 120


def test_what_was_kept_in_another_way_is_not_used(encoder: WindowEncoder, tmp_path: Path) -> None:
    kept = tmp_path / "talk.fslm.partial"
    _encode_until(encoder, kept, 120)
    other = WindowEncoder(encoder.model, workers=1, dtype=torch.bfloat16)
    seen: list[float] = []
    memory = other.encode(RECORDING, kept_at=kept, on_progress=lambda p: seen.append(p.seconds))
    assert seen[0] == 0
    assert torch.equal(memory.tokens, other.encode(RECORDING).tokens)


def test_another_recording_does_not_go_on_from_this_one(encoder: WindowEncoder, tmp_path: Path) -> None:
    kept = tmp_path / "talk.fslm.partial"
    _encode_until(encoder, kept, 240)
    changed = RECORDING.copy()
    changed[200 * 16_000] += 0.1
    with pytest.raises(FastSLMError, match="the beginning of another recording"):
        encoder.encode(changed, kept_at=kept)


def test_two_processes_do_not_keep_in_one_file(tmp_path: Path) -> None:
    with (
        KeptGroups(tmp_path / "a.partial", {}),
        pytest.raises(FastSLMError, match="another process"),
        KeptGroups(tmp_path / "a.partial", {}),
    ):
        pass


def test_a_full_disk_is_a_sentence_and_what_was_whole_stays(
    encoder: WindowEncoder, tmp_path: Path, monkeypatch
) -> None:
    kept = tmp_path / "talk.fslm.partial"
    _encode_until(encoder, kept, 120)
    size = kept.stat().st_size

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def write(self, content: bytes) -> None:
            self.file.write(content[:100])
            raise OSError(28, os.strerror(28))

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    ordinary = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", **o: Full(ordinary(path, mode)) if mode == "ab" else ordinary(path, mode, **o),
    )
    with pytest.raises(FastSLMError, match="No space left on device"):
        encoder.encode(RECORDING, kept_at=kept)
    monkeypatch.undo()
    with KeptGroups(kept, encoder._stamp("fixed")) as groups:
        assert groups.windows == 4
    assert kept.stat().st_size == size
