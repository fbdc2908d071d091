"""Lhotse cuts and Shar folders as rows: what they say, how they sound, and what is wrong with them."""

import gzip
import json
import shutil
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.data.batches import RowBatches, Source
from fastslm.data.cuts import CutRows, read_rows
from fastslm.data.loading import RowLoader
from fastslm.data.rows import Row
from fastslm.errors import AudioError, ManifestError, OptionError


def cut_of(path: Path, text: str | None = "hello there", **custom: Any) -> MonoCut:
    recording = Recording.from_file(path)
    cut = recording.to_cut()
    assert isinstance(cut, MonoCut)
    if text is not None:
        cut.supervisions = [SupervisionSegment(path.stem, recording.id, 0.0, cut.duration, 0, text, "English", "ann")]
    for key, value in custom.items():
        setattr(cut, key, value)
    return cut


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(cuts…)`: a file of cuts."""

    def write(*cuts: Any, name: str = "cuts.jsonl") -> Path:
        CutSet.from_cuts(cuts).to_file(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def wav(tmp_path: Path, encode: Any, tone: Any) -> Callable[..., Path]:
    """`wav(name, seconds, rate)`: a tone in a file."""

    def make(name: str, seconds: float, rate: int = SAMPLE_RATE, frequency: float = 440.0) -> Path:
        return encode(tmp_path / f"{name}.wav", tone(seconds, rate, frequency), rate)

    return make


def only(path: Path, task: str | None = None) -> Row:
    (row,) = read_rows(path, task).epoch([0, 0], 0)
    return row


def test_a_cut_of_three_minutes_gives_six_windows_that_are_its_sound(
    write: Callable[..., Path], tmp_path: Path, encode: Any
) -> None:
    ramp = np.linspace(-1, 1, 181 * SAMPLE_RATE, dtype=np.float32)
    encode(tmp_path / "long.wav", ramp)
    cut = cut_of(tmp_path / "long.wav").truncate(offset=1.0, duration=180.0)
    row = only(write(cut))
    windows = list(row.waveforms())
    assert (row.windows, len(windows)) == (6, 6)
    assert np.abs(np.concatenate(windows) - ramp[SAMPLE_RATE:]).max() < 1e-4


def test_only_what_is_in_a_window_is_read_for_it(
    write: Callable[..., Path], wav: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lhotse.audio.source import AudioSource

    read: list[tuple[float, float | None]] = []
    load = AudioSource.load_audio
    monkeypatch.setattr(
        AudioSource,
        "load_audio",
        lambda self, offset=0.0, duration=None, **rest: (
            read.append((offset, duration)) or load(self, offset, duration, **rest)
        ),
    )
    windows = only(write(cut_of(wav("a", 65)))).waveforms()
    next(windows)
    assert read == [(0.0, 30.0)]
    list(windows)
    assert read == [(0.0, 30.0), (30.0, 30.0), (60.0, 5.0)]


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_any_sampling_rate_is_read_at_16_khz(write: Callable[..., Path], wav: Callable[..., Path], rate: int) -> None:
    row = only(write(cut_of(wav("a", 2.0, rate))))
    wave = next(row.waveforms())
    assert row.samples == 2 * SAMPLE_RATE
    spectrum = np.abs(np.fft.rfft(wave[: row.samples]))
    assert np.argmax(spectrum) / 2 == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(wave[: row.samples] ** 2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.02)


def test_appended_cuts_of_several_rates_sound_one_after_another_with_their_pause(
    write: Callable[..., Path], wav: Callable[..., Path]
) -> None:
    one, two = cut_of(wav("a", 20.0)), cut_of(wav("b", 20.0, frequency=880.0), "and then")
    whole = one.pad(duration=20.5, preserve_id=True).append(two)
    row = only(write(whole))
    windows = list(row.waveforms())
    assert (row.windows, row.seconds, row.answer) == (2, 40.5, "hello there and then")
    wave = np.concatenate(windows)
    assert not wave[20 * SAMPLE_RATE : round(20.5 * SAMPLE_RATE)].any()
    for start, frequency in ((0, 440), (20.5, 880)):
        part = wave[round(start * SAMPLE_RATE) :][: 20 * SAMPLE_RATE]
        assert np.argmax(np.abs(np.fft.rfft(part))) / 20 == pytest.approx(frequency, abs=1)


def test_supervisions_and_custom_fields_are_what_is_asked_and_what_is_right(
    write: Callable[..., Path], wav: Callable[..., Path]
) -> None:
    plain = cut_of(wav("a", 2.0), "Hello.", translation="안녕하세요.", target_language="ko", summary="A greeting.")
    path = write(plain)
    found = [only(path, task) for task in (None, "translate", "summarize")]
    assert [(row.task, row.answer, row.language) for row in found] == [
        ("transcribe", "Hello.", "en"),
        ("translate", "안녕하세요.", "ko"),
        ("summarize", "A greeting.", "en"),
    ]
    asked = only(write(cut_of(wav("b", 2.0), task="ask", instruction="Who?", answer="Anna"), name="b.jsonl"))
    assert (asked.task, asked.instruction, asked.answer, asked.text) == ("ask", "Who?", "Anna", "hello there")
    silent = only(write(cut_of(wav("c", 2.0), None, label="rain"), name="c.jsonl"))
    assert (silent.task, silent.answer) == ("transcribe", "")


def test_texts_of_a_cut_are_in_the_order_in_which_they_are_said(
    write: Callable[..., Path], wav: Callable[..., Path]
) -> None:
    cut = cut_of(wav("a", 9.0), None)
    said = [(6.0, "three"), (0.0, "one"), (3.0, "two")]
    cut.supervisions = [SupervisionSegment(text, "a", start, 2.0, 0, text) for start, text in said]
    assert only(write(cut)).answer == "one two three"


@pytest.mark.parametrize("name", ["manifest", "cuts", "packed", "shar"])
def test_real_speech_is_the_same_rows_however_it_is_kept(spoken: dict[str, Path], name: str) -> None:
    rows = {row.id: row for row in read_rows(spoken[name]).epoch([0, 0], 0)}
    wanted = {row.id: row for row in read_rows(spoken["manifest"]).epoch([0, 0], 0)}
    assert len(rows) == 20
    for key, row in wanted.items():
        found = rows[key]
        assert (found.task, found.answer, found.language, found.windows) == (
            "transcribe",
            row.answer,
            "en",
            row.windows,
        )
        assert found.seconds == pytest.approx(row.seconds, abs=1e-3)
    key = min(wanted, key=lambda own: wanted[own].seconds)
    one, two = (np.fft.rfft(next(own[key].waveforms()))[: WINDOW_SAMPLES * 3 // 8] for own in (rows, wanted))
    # Up to 6 kHz: decoders differ where Opus and their resampling filters end.
    assert np.linalg.norm(one - two) < 0.02 * np.linalg.norm(two)


@pytest.mark.parametrize("name", ["cuts", "packed", "shar"])
def test_batches_of_cuts_are_the_same_on_one_process_and_on_two_and_resume(spoken: dict[str, Path], name: str) -> None:
    def batches(**options: Any) -> RowBatches:
        return RowBatches([Source(read_rows(spoken[name]))], batch_seconds=150, seed=3, **options)

    alone = batches()
    steps = [[row.id for row in own] for own in islice(alone, 9)]
    shares = [[[row.id for row in own] for own in islice(batches(rank=i, world_size=2), 9)] for i in range(2)]
    assert [sorted(own) for own in steps] == [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert len({name for own in steps[:4] for name in own}) == 20, "an epoch is all of them"
    assert steps[:4] != steps[4:8]
    again = batches()
    again.load_state_dict(json.loads(json.dumps(alone.state_dict())))
    assert [row.id for row in next(again)] == [row.id for row in next(alone)]


def test_a_shar_folder_is_read_shard_after_shard_in_an_order_of_each_epoch(spoken: dict[str, Path]) -> None:
    rows = read_rows(spoken["shar"])
    assert isinstance(rows, CutRows)
    shards = [[line // 8 for line in rows.epoch([0, 0], number).order] for number in range(12)]
    assert all(sum(a != b for a, b in pairwise(own)) == 2 for own in shards)
    assert len({tuple(own) for own in shards}) > 2


def test_real_speech_from_a_shar_folder_is_the_same_in_worker_processes(spoken: dict[str, Path]) -> None:
    def first(workers: int) -> Any:
        batches = RowBatches([Source(read_rows(spoken["shar"]))], batch_rows=2, seed=1)
        return next(iter(RowLoader(batches, n_mels=80, workers=workers)))

    here, there = first(0), first(1)
    assert [row.id for row in here.rows] == [row.id for row in there.rows]
    assert bool((here.input_features == there.input_features).all())


def test_a_moved_folder_of_cuts_and_audio_is_read_where_it_is(
    write: Callable[..., Path], wav: Callable[..., Path], tmp_path: Path
) -> None:
    wav("a", 2.0)
    cut = cut_of(tmp_path / "a.wav")
    cut.recording.sources[0].source = "a.wav"
    path = write(cut)
    before = only(path)
    (tmp_path / "moved").mkdir()
    for name in ("a.wav", "cuts.jsonl"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    after = only(tmp_path / "moved" / "cuts.jsonl")
    assert before.sound
    assert after.sound
    assert len(list(after.waveforms())) == 1
    digest = after.sound.digest()
    wav("a", 2.0, frequency=300.0)
    assert before.sound.digest() != digest


def test_cuts_of_one_recording_have_digests_of_their_own(write: Callable[..., Path], wav: Callable[..., Path]) -> None:
    whole = cut_of(wav("a", 4.0))
    cuts = [whole.truncate(offset=at, duration=2.0) for at in (0.0, 1.0)]
    names = {row.sound.digest() for row in read_rows(write(whole, *cuts)).epoch([0, 0], 0)}
    assert len(names) == 3


def test_cuts_without_text_are_one_sentence(write: Callable[..., Path], wav: Callable[..., Path]) -> None:
    first = cut_of(wav("a", 2.0))
    for text in (None, "", "  "):
        with pytest.raises(ManifestError, match=r"cuts\.jsonl: the cut b has no text, .* leave it out"):
            read_rows(write(first, cut_of(wav("b", 2.0), text)))


def test_a_corpus_that_is_not_there_or_no_corpus_is_one_sentence(
    write: Callable[..., Path], wav: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match="nowhere does not exist: name a file of cuts"):
        CutRows(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"empty holds no cuts\.000000\.jsonl\.gz, which a Shar folder has"):
        read_rows(tmp_path / "empty")
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ManifestError, match="there is no cut in it"):
        read_rows(tmp_path / "empty.jsonl.gz")
    for content in (b"never packed", gzip.compress(np.random.default_rng(0).bytes(9999))[:999]):
        (tmp_path / "half.jsonl.gz").write_bytes(content)
        with pytest.raises(ManifestError, match=r"half\.jsonl\.gz cannot be read|is not JSON"):
            read_rows(tmp_path / "half.jsonl.gz")
    (tmp_path / "wrong.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a"}\n'))
    with pytest.raises(ManifestError, match="line 1: this is no cut"):
        read_rows(tmp_path / "wrong.jsonl.gz")
    path = write(cut_of(wav("a", 2.0)))
    for change in ({"duration": None}, {"id": None}, {"recording": {}}):
        (tmp_path / "odd.jsonl").write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ManifestError, match=r"odd\.jsonl, line 1: this cut is not as lhotse writes it"):
            read_rows(tmp_path / "odd.jsonl")
    path.write_text(path.read_text() + "{nonsense\n")
    with pytest.raises(ManifestError, match="line 2: this is not JSON"):
        read_rows(path)


def test_missing_audio_is_found_before_anything_is_decoded(
    write: Callable[..., Path], wav: Callable[..., Path], spoken: dict[str, Path], tmp_path: Path
) -> None:
    path = write(cut_of(wav("a", 2.0)), cut_of(wav("b", 2.0)))
    (tmp_path / "b.wav").unlink()
    with pytest.raises(ManifestError, match=r"cuts\.jsonl: The audio .*b\.wav of the cut b is neither there"):
        read_rows(path)
    shutil.copytree(spoken["shar"], tmp_path / "shar")
    (tmp_path / "shar" / "recording.000001.tar").unlink()
    with pytest.raises(ManifestError, match=r"in recording\.000001\.tar, which is not beside it"):
        read_rows(tmp_path / "shar")


def test_damaged_audio_is_one_sentence(write: Callable[..., Path], wav: Callable[..., Path], tmp_path: Path) -> None:
    row = only(write(cut_of(wav("a", 2.0))))
    (tmp_path / "a.wav").write_bytes(b"no sound at all")
    with pytest.raises(AudioError, match="The cut a cannot be read: ") as caught:
        list(row.waveforms())
    assert "\n" not in str(caught.value)


def test_without_lhotse_the_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastslm.data.cuts.find_spec", lambda _: None)
    with pytest.raises(OptionError, match=r"pip install 'fastslm\[train\]'"):
        read_rows(tmp_path)
