"""A recording that breaks off is read as far as it goes and marked, whole ones never are; what lies behind is read."""

import contextlib
import io
import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastslm.audio import SAMPLE_RATE, AudioWarning, load_audio, probe_duration, stream_audio
from fastslm.errors import AudioError, CutShortError

SECONDS = 8.0
# Name, rate, codec, options of the container.
COUNTED = [
    ("s16.wav", 22_050, "pcm_s16le", {}),
    ("f64.wav", 16_000, "pcm_f64le", {}),
    ("large.wav", 22_050, "pcm_s16le", {"rf64": "always"}),
    ("a.w64", 22_050, "pcm_s16le", {}),
    ("a.aiff", 22_050, "pcm_s16be", {}),
    ("a.au", 22_050, "pcm_s16be", {}),
    ("a.flac", 44_100, "flac", {}),
    ("a.mp3", 44_100, "libmp3lame", {}),
    ("low.mp3", 16_000, "libmp3lame", {}),
    ("a.ogg", 48_000, "libopus", {}),
    ("a.oga", 44_100, "flac", {}),
    ("first.m4a", 44_100, "aac", {"movflags": "faststart"}),
    ("a.webm", 48_000, "libopus", {}),
    ("a.mkv", 44_100, "flac", {}),
    ("pcm.mkv", 44_100, "pcm_s16le", {}),
    ("a.flv", 44_100, "aac", {}),
    ("a.tta", 44_100, "tta", {}),
    ("a.wv", 44_100, "wavpack", {}),
    ("a.aac", 44_100, "aac", {}),
    ("a.amr", 8_000, "libopencore_amrnb", {}),
]
# They state no length that FFmpeg tells: what is cut just between two packets or pages of them nobody can know.
BY_THE_PIECE = ("a.w64", "a.ogg", "a.oga", "a.aac", "a.amr")
# Of a stream that cannot be rewound FFmpeg does not read it.
NOT_OF_A_STREAM = ("a.mp3", "low.mp3")
# Nothing of these can be read without their end.
INDEX_LAST = [("a.m4a", 44_100, "aac", {}), ("a.mov", 44_100, "pcm_s16le", {}), ("alac.caf", 48_000, "alac", {})]
# These say nothing of their length, and a decoder hears nothing of a cut.
UNCOUNTED = [
    ("a.mp2", 44_100, "mp2", {}),
    ("a.ac3", 44_100, "ac3", {}),
    ("bare.mp3", 44_100, "libmp3lame", {"write_xing": "0"}),
    ("a.ts", 44_100, "aac", {}),
    ("a.mpg", 44_100, "mp2", {}),
    ("a.nut", 44_100, "aac", {}),
    ("a.voc", 22_050, "pcm_u8", {}),
    ("a.caf", 22_050, "pcm_s16le", {}),
    ("a.avi", 44_100, "libmp3lame", {}),
    ("parts.mp4", 44_100, "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}),
]
Kind = tuple[str, int, str, dict[str, str]]


def _names(kinds: list[Kind]) -> list[str]:
    return [kind[0] for kind in kinds]


class _Stream:
    """What cannot be rewound."""

    def __init__(self, content: bytes):
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, encode, tone) -> Callable[[Kind], bytes]:
    """`whole(kind)`: the content of a file of that kind, 8 s of a tone; each is made once."""
    folder, made = tmp_path_factory.mktemp("whole"), dict[str, bytes]()

    def make(kind: Kind) -> bytes:
        name, rate, codec, options = kind
        if name not in made:
            path = encode(folder / name, tone(SECONDS, rate), rate, codec, container_options=options)
            made[name] = path.read_bytes()
        return made[name]

    return make


def _refused(content: object) -> str:
    """The sentence of one who wants nothing that breaks off."""
    with pytest.raises(CutShortError, match="is cut short") as refusal:
        load_audio(content, strict=True, on_warning=lambda _: None)  # type: ignore[arg-type]
    message = str(refusal.value)
    assert message.endswith(".")
    assert "get the file again" in message
    return message


def _part(content: object) -> tuple[np.ndarray, str, float | None]:
    """What is there, the one sentence about it, and the seconds that are missing."""
    told: list[tuple[str, float | None]] = []
    samples = load_audio(  # type: ignore[arg-type]
        content,  # type: ignore[arg-type]
        on_warning=lambda sentence: pytest.fail(sentence),
        on_partial=lambda *words: told.append(words),
    )
    ((sentence, missing),) = told
    return samples, sentence, missing


def _whole(content: object) -> np.ndarray:
    """All of it, of which there is nothing to say."""
    return load_audio(content, strict=True, on_warning=lambda sentence: pytest.fail(sentence))  # type: ignore[arg-type]


# Files that are cut


@pytest.mark.fault
@pytest.mark.parametrize("kind", COUNTED, ids=_names(COUNTED))
@pytest.mark.parametrize("share", [0.5, 0.93])
def test_a_file_cut_at_half_or_in_its_last_second_is_read_as_far_as_it_goes_and_marked(
    whole, kind: Kind, share: float
) -> None:
    content = whole(kind)[: int(len(whole(kind)) * share)]
    samples, sentence, missing = _part(content)
    assert 0 < len(samples) / SAMPLE_RATE < 0.98 * SECONDS
    assert f"{len(samples) / SAMPLE_RATE:.1f} s of sound" in sentence
    assert "--strict" not in sentence
    if kind[0] not in BY_THE_PIECE:
        assert missing == pytest.approx(SECONDS - len(samples) / SAMPLE_RATE, abs=0.1)
        assert "of 8.0 s that it announces" in sentence or "of 8.1 s" in sentence
    assert "without --strict (strict=True in Python)" in _refused(content)


def test_without_a_listener_a_cut_is_a_python_warning(whole) -> None:
    (kind,) = (kind for kind in COUNTED if kind[0] == "a.flac")
    content = whole(kind)[: len(whole(kind)) // 2]
    with pytest.warns(AudioWarning, match="is cut short"):
        load_audio(content)


@pytest.mark.parametrize("kind", INDEX_LAST, ids=_names(INDEX_LAST))
def test_a_file_whose_index_comes_last_is_refused_without_it(whole, kind: Kind) -> None:
    with pytest.raises(AudioError, match="or it is cut short or damaged"):
        load_audio(whole(kind)[: len(whole(kind)) // 2])


@pytest.mark.parametrize("kind", COUNTED, ids=_names(COUNTED))
def test_a_stream_that_stops_half_way_is_marked_at_its_end(whole, kind: Kind) -> None:
    content = whole(kind)
    assert len(_whole(_Stream(content))) > 0.98 * SECONDS * SAMPLE_RATE
    if kind[0] not in NOT_OF_A_STREAM:
        _part(_Stream(content[: len(content) // 2]))


@pytest.mark.parametrize("lost", [1, 100])
@pytest.mark.parametrize("name", ["a.ogg", "a.flac", "a.aac", "first.m4a", "s16.wav"])
def test_a_last_packet_that_breaks_off_is_enough(whole, name: str, lost: int) -> None:
    (kind,) = (kind for kind in COUNTED if kind[0] == name)
    if (name, lost) != ("s16.wav", 1):  # half a sample
        _part(whole(kind)[:-lost])


@settings(deadline=None, max_examples=60)
@given(data=st.data(), kind=st.sampled_from([kind for kind in COUNTED if kind[0] not in BY_THE_PIECE]))
def test_a_file_cut_anywhere_between_its_first_and_last_second_is_marked(
    whole, data: st.DataObject, kind: Kind
) -> None:
    content = whole(kind)
    stop = data.draw(st.integers(len(content) // 8, len(content) * 7 // 8))
    for source in (content[:stop], _Stream(content[:stop])):
        if isinstance(source, bytes) or kind[0] not in NOT_OF_A_STREAM:
            with pytest.raises(AudioError):
                load_audio(source, strict=True)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), kind=st.sampled_from([*COUNTED, *INDEX_LAST, *UNCOUNTED]))
def test_what_is_damaged_anywhere_is_heard_or_refused_and_never_a_crash(whole, data: st.DataObject, kind: Kind) -> None:
    content = bytearray(whole(kind))
    near_the_head = data.draw(st.booleans())
    places = st.integers(0, 200 if near_the_head else len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    for source in (bytes(content), _Stream(bytes(content))):
        with contextlib.suppress(AudioError):
            # A damaged clock may count hours, and they are not to be held.
            list(islice(stream_audio(source, on_warning=lambda _: None), 20))  # type: ignore[arg-type]
    with contextlib.suppress(AudioError):
        probe_duration(bytes(content))


def test_of_a_video_the_sounds_own_duration_counts(tmp_path: Path, encode, tone) -> None:
    content = encode(tmp_path / "a.mkv", tone(SECONDS, 48_000), 48_000, "aac", picture=True).read_bytes()
    _whole(content)
    assert "of 8.0 s that it announces" in _part(content[: len(content) // 2])[1]


# What lies behind the end


def _counting(content: bytes, share: float) -> bytes:
    """A WAV whose header counts only a share of its samples, as of a recorder that was killed."""
    found = bytearray(content)
    place = found.index(b"data") + 4
    (size,) = struct.unpack("<I", found[place : place + 4])
    # In whole samples of all channels, whatever they are.
    found[place : place + 4] = struct.pack("<I", int(size * share) // 240 * 240)
    found[4:8] = struct.pack("<I", place + int(size * share))
    return bytes(found)


WAVS = [("pcm_s16le", 1, 16_000), ("pcm_u8", 1, 8_000), ("pcm_s24le", 2, 44_100), ("pcm_f32le", 1, 48_000)]
WAVS += [("pcm_mulaw", 1, 8_000), ("pcm_s16le", 6, 48_000)]


@pytest.mark.fault
@pytest.mark.parametrize(("codec", "channels", "rate"), WAVS, ids=lambda value: str(value))
@pytest.mark.parametrize("share", [0.01, 0.4])
def test_samples_behind_the_end_that_a_wav_states_are_read(
    tmp_path: Path, encode, tone, codec: str, channels: int, rate: int, share: float
) -> None:
    content = encode(tmp_path / "a.wav", np.tile(tone(5.0, rate), (channels, 1)), rate, codec).read_bytes()
    stale = _counting(content, share)
    expected = _whole(content)
    for source in (stale, _Stream(stale)):
        # A resampler that begins anew at the stated end shifts nothing by more than a sample.
        samples = _whole(source)
        assert abs(len(samples) - len(expected)) <= 1
        if rate == SAMPLE_RATE:
            np.testing.assert_array_equal(samples, expected)
    assert probe_duration(stale) == pytest.approx(5, abs=0.01)


@pytest.mark.fault
def test_samples_behind_the_end_that_an_aiff_states_are_read(whole) -> None:
    (kind,) = (kind for kind in COUNTED if kind[0] == "a.aiff")
    content = bytearray(whole(kind))
    for mark, size in ((b"SSND", 44_100 + 8), (b"FORM", 44_100 + 46)):
        place = content.index(mark) + 4
        content[place : place + 4] = struct.pack(">I", size)
    np.testing.assert_array_equal(_whole(bytes(content))[:16_000], _whole(whole(kind))[:16_000])
    assert len(_whole(bytes(content))) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.01)


@pytest.mark.fault
def test_what_cannot_be_read_behind_the_stated_end_is_said_in_bytes_and_seconds(tmp_path: Path, encode, tone) -> None:
    content = encode(tmp_path / "a.wav", tone(SECONDS, 22_050), 22_050, "adpcm_ima_wav").read_bytes()
    place = content.index(b"data") + 4
    stale = content[:place] + struct.pack("<I", 1024 * 10) + content[place + 4 :]
    for source in (stale, _Stream(stale)):
        told: list[str] = []
        samples = load_audio(source, on_warning=told.append)  # type: ignore[arg-type]
        assert len(samples) / SAMPLE_RATE < 2
        left = len(content) - place - 4 - 1024 * 10
        assert f"holds {left} bytes (about {left / 11_025:.1f} s) behind the end that it states" in told[-1]


JOINED = [kind for kind in [*COUNTED, *INDEX_LAST, *UNCOUNTED] if kind[0] not in ("a.nut", "large.wav")]


@pytest.mark.fault
@pytest.mark.parametrize("kind", JOINED, ids=_names(JOINED))
def test_files_joined_with_cat_are_read_one_after_another(whole, kind: Kind) -> None:
    content = whole(kind)
    length = len(_whole(content))
    samples = load_audio(content * 3, strict=True, on_warning=lambda _: None)
    assert len(samples) / SAMPLE_RATE == pytest.approx(3 * length / SAMPLE_RATE, abs=0.3)


@pytest.mark.fault
def test_of_joined_files_a_last_one_that_breaks_off_is_marked(whole) -> None:
    for kind in [kind for kind in COUNTED if kind[0] in ("s16.wav", "a.aiff", "a.ogg", "first.m4a")]:
        content = whole(kind) * 2
        samples, _, _ = _part(content[: len(content) * 7 // 8])
        assert SECONDS < len(samples) / SAMPLE_RATE < 2 * SECONDS


def _chunk(name: bytes, size: int) -> bytes:
    return name + struct.pack("<I", size) + bytes(range(1, 251)) * (size // 250)


@pytest.mark.parametrize(
    "behind",
    [_chunk(b"LIST", 500), _chunk(b"id3 ", 1_000_000), _chunk(b"bext", 50_000) * 3, bytes(300), b"TAG" + bytes(9_000)],
    ids=["tags", "picture", "several", "padding", "id3v1"],
)
def test_chunks_behind_the_samples_of_a_wav_are_neither_sound_nor_said(whole, behind: bytes) -> None:
    (kind,) = (kind for kind in COUNTED if kind[0] == "s16.wav")
    expected = _whole(whole(kind))
    for source in (whole(kind) + behind, _Stream(whole(kind) + behind)):
        np.testing.assert_array_equal(_whole(source), expected)
    assert probe_duration(whole(kind) + behind) == pytest.approx(SECONDS, abs=0.01)
    assert len(_whole(whole(kind) + behind + whole(kind))) == pytest.approx(2 * len(expected), abs=2)


class _Counted(io.BytesIO):
    """A file that counts what is read of it."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.count += len(content)
        return content

    def seek(self, *place: int) -> int:
        return self._file.seek(*place)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


@pytest.mark.fault
@pytest.mark.parametrize(
    ("head", "size"), [("short", 1 << 32), ("true", 1 << 32), ("unknown", 1 << 32), ("caf", 1 << 32), ("mp4", 1 << 32)]
)
def test_a_sparse_file_of_gigabytes_is_looked_at_without_reading_it(
    tmp_path: Path, whole, tone, head: str, size: int
) -> None:
    content = bytearray(_wav(tone))
    if head != "short":
        content[40:44] = struct.pack("<I", size - 45 if head == "true" else 0)
    if head == "caf":
        content = bytearray(whole(next(kind for kind in UNCOUNTED if kind[0] == "a.caf")))
    if head == "mp4":
        content = bytearray(whole(next(kind for kind in COUNTED if kind[0] == "first.m4a")))
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)
    with _Counted(path) as counted:
        seconds = probe_duration(counted)
        assert seconds is not None
        assert seconds > 7 if head in ("caf", "mp4") else seconds == pytest.approx((size - 44) / 32_000)
        next(stream_audio(counted, block_samples=SAMPLE_RATE))
        assert counted.count < 60_000_000


def test_a_file_is_opened_once(whole, tmp_path: Path, monkeypatch) -> None:
    ordinary, names = open, []
    monkeypatch.setattr("builtins.open", lambda name, *mode: names.append(name) or ordinary(name, *mode))
    for kind in COUNTED:
        path = tmp_path / kind[0]
        path.write_bytes(whole(kind) * 2)
        names.clear()
        load_audio(path, on_warning=lambda _: None)
        assert names == [str(path)]


# Files that are whole


@pytest.mark.parametrize("kind", [*COUNTED, *INDEX_LAST, *UNCOUNTED], ids=_names([*COUNTED, *INDEX_LAST, *UNCOUNTED]))
def test_a_whole_file_of_every_kind_is_taken(whole, kind: Kind) -> None:
    assert len(_whole(whole(kind))) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from([*COUNTED, *INDEX_LAST, *UNCOUNTED]), milliseconds=st.integers(200, 4_000))
def test_no_whole_file_is_marked_whatever_its_kind_and_length(tmp_path, encode, tone, kind, milliseconds) -> None:
    name, rate, codec, options = kind
    path = encode(tmp_path / name, tone(milliseconds / 1000, rate), rate, codec, container_options=options)
    _whole(path)
    if kind not in INDEX_LAST:
        _whole(_Stream(path.read_bytes()))


class _Sink:
    """Where a recorder writes to that cannot go back and fill in how long it was."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, content: bytes) -> int:
        self.content += content
        return len(content)


def _recorded(tone, form: str, rate: int, codec: str, gap: tuple[float, float] = (0, 0), **options: str) -> bytes:
    """A recording made in one go; what falls into the gap was not sent."""
    sink = _Sink()
    with av.open(sink, "w", format=form, options=options) as container:
        sound = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(SECONDS, rate)[None], "flt", "mono")
        frame.rate, frame.pts = rate, 0
        resampler = av.AudioResampler(sound.format, "mono", rate, sound.codec_context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in sound.encode(piece):
                if packet.pts is None or not gap[0] <= packet.pts * packet.time_base < gap[1]:
                    container.mux(packet)
    return bytes(sink.content)


PARTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
LIVE = [
    ("wav", 22_050, "pcm_s16le", {}),
    ("caf", 22_050, "pcm_s16le", {}),
    ("au", 22_050, "pcm_s16be", {}),
    ("avi", 44_100, "libmp3lame", {}),
    ("flac", 44_100, "flac", {}),
    ("mp3", 44_100, "libmp3lame", {}),
    ("ogg", 48_000, "libopus", {}),
    ("webm", 48_000, "libopus", {}),
    ("matroska", 44_100, "aac", {}),
    ("flv", 44_100, "aac", {}),
    ("mp4", 44_100, "aac", PARTS),
    ("mpegts", 44_100, "aac", {}),
    ("latm", 44_100, "aac", {}),
    ("tta", 44_100, "tta", {}),
    ("wv", 44_100, "wavpack", {}),
    ("nut", 44_100, "aac", {}),
]


@pytest.mark.parametrize(("form", "rate", "codec", "options"), LIVE, ids=[row[0] for row in LIVE])
def test_a_recorder_that_never_wrote_the_length_is_taken(tone, form: str, rate: int, codec: str, options) -> None:
    content = _recorded(tone, form, rate, codec, **options)
    for source in (content, _Stream(content)):
        assert len(_whole(source)) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("row", [row for row in LIVE if row[0] in ("ogg", "webm", "matroska", "flv", "mp4")])
def test_what_was_never_sent_is_no_cut(tone, row) -> None:
    form, rate, codec, options = row
    content = _recorded(tone, form, rate, codec, gap=(2, 5), **options)
    told: list[str] = []
    samples = load_audio(content, strict=True, on_warning=told.append)
    assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)  # what lacks is silence
    assert "3.0 s without sound" in told[0]


def _wav(tone) -> bytes:
    data = (tone(2.0) * 32767).astype("<i2").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", len(head) + 8 + len(data)) + head + b"data" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize("riff", [0, 8, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000024, 0xFFFFFFFF - 36])
@pytest.mark.parametrize("data", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 36])
def test_a_length_in_a_wav_that_stands_for_none_is_no_announcement(tone, riff: int, data: int) -> None:
    content = bytearray(_wav(tone))
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    for source in (bytes(content), _Stream(bytes(content))):
        assert len(_whole(source)) == 2 * SAMPLE_RATE
    assert probe_duration(bytes(content)) == 2


@pytest.mark.parametrize("counted", [8, 44])
def test_a_wav_that_counts_its_own_header_twice_is_whole(tone, counted: int) -> None:
    content = bytearray(_wav(tone))
    for place in (4, 40):
        content[place : place + 4] = struct.pack("<I", struct.unpack("<I", content[place : place + 4])[0] + counted)
    assert len(_whole(bytes(content))) == 2 * SAMPLE_RATE


LYRICS = b"LYRICSBEGININD0000200LYR00100" + b"y" * 100 + b"000130LYRICS200"
ID3_BEHIND = b"TAG" + bytes(125)
ID3_BEFORE = b"ID3\x04\x00\x00\x00\x01\x00\x00" + bytes(1 << 14)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("before", "behind"),
    [(b"", ID3_BEHIND), (ID3_BEFORE, b""), (b"", LYRICS + ID3_BEHIND), (b"", bytes(5000)), (ID3_BEFORE * 2, LYRICS)],
)
def test_tags_around_an_mp3_are_neither_its_sound_nor_a_cut(whole, bare: bool, before: bytes, behind: bytes) -> None:
    kind = next(kind for kind in [*COUNTED, *UNCOUNTED] if kind[0] == ("bare.mp3" if bare else "a.mp3"))
    content = before + whole(kind) + behind
    samples = load_audio(content, strict=True, on_warning=lambda _: None)
    assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    if not bare:
        _refused((before + whole(kind))[: len(before) + len(whole(kind)) // 2] + behind[:128])


def test_what_lies_behind_a_container_is_no_cut(whole) -> None:
    for kind in [*COUNTED, *INDEX_LAST]:
        if kind[0].rsplit(".")[-1] in ("wav", "aiff", "m4a", "mp4", "mkv", "webm", "ogg"):
            for behind in (bytes(300), b"\x00\x00\x00\x14ABCD" + bytes(12), b"\x7f\xff\xff\xffwords of somebody"):
                load_audio(whole(kind) + behind, strict=True)


def test_an_edited_mp4_of_which_a_part_is_shown_is_whole(whole) -> None:
    """Phones cut a recording by an edit list: the sound is all there, and some of it is not to be heard."""
    for kind in [kind for kind in [*COUNTED, *INDEX_LAST] if kind[0] in ("first.m4a", "a.m4a")]:
        content = bytearray(whole(kind))
        place = content.index(b"elst") + 12  # behind version and count: segment duration, media time
        content[place : place + 8] = struct.pack(">II", 3000, 2 * 44_100)
        samples = _whole(bytes(content))
        assert len(samples) / SAMPLE_RATE == pytest.approx(3, abs=0.1)
