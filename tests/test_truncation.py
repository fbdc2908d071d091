"""A recording that breaks off is refused, whole ones never are; what is there is given where it is asked for."""

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastslm.audio import SAMPLE_RATE, load_audio, require_whole
from fastslm.errors import AudioError, CutShortError
from fastslm.extent import stated_extent

SECONDS = 8.0
# Name, rate, codec, options of the container.
COUNTED = [
    ("s16.wav", 22_050, "pcm_s16le", {}),
    ("f64.wav", 16_000, "pcm_f64le", {}),
    ("large.wav", 22_050, "pcm_s16le", {"rf64": "always"}),
    ("a.w64", 22_050, "pcm_s16le", {}),
    ("a.aiff", 22_050, "pcm_s16be", {}),
    ("a.au", 22_050, "pcm_s16be", {}),
    ("a.caf", 22_050, "pcm_s16le", {}),
    ("a.avi", 44_100, "libmp3lame", {}),
    ("a.flac", 44_100, "flac", {}),
    ("a.mp3", 44_100, "libmp3lame", {}),
    ("low.mp3", 16_000, "libmp3lame", {}),
    ("a.ogg", 48_000, "libopus", {}),
    ("a.oga", 44_100, "flac", {}),
    ("first.m4a", 44_100, "aac", {"movflags": "faststart"}),
    ("parts.mp4", 44_100, "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}),
    ("a.webm", 48_000, "libopus", {}),
    ("a.mkv", 44_100, "flac", {}),
    ("pcm.mkv", 44_100, "pcm_s16le", {}),
    ("a.flv", 44_100, "aac", {}),
    ("a.tta", 44_100, "tta", {}),
    ("a.wv", 44_100, "wavpack", {}),
    ("a.aac", 44_100, "aac", {}),
    ("a.amr", 8_000, "libopencore_amrnb", {}),
]
# Their pages, packets or parts are counted one by one: of one cut just between two nobody can know.
BY_THE_PIECE = ("a.ogg", "a.oga", "parts.mp4", "a.aac", "a.amr")
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
    with pytest.raises(CutShortError, match="is cut short") as refusal:
        load_audio(content)  # type: ignore[arg-type]
    message = str(refusal.value)
    assert message.endswith(".")
    assert "get the file again" in message
    return message


def _part(content: object) -> tuple[np.ndarray, str]:
    """What is there, and the one sentence about it."""
    told: list[str] = []
    samples = load_audio(content, on_warning=lambda _: None, on_cut=told.append)  # type: ignore[arg-type]
    (sentence,) = told
    return samples, sentence


# Files that are cut


@pytest.mark.parametrize("kind", COUNTED, ids=_names(COUNTED))
@pytest.mark.parametrize("share", [0.5, 0.93])
def test_a_file_cut_at_half_or_in_its_last_second_is_refused_and_its_part_is_given_where_asked(
    whole, kind: Kind, share: float
) -> None:
    content = whole(kind)[: int(len(whole(kind)) * share)]
    message = _refused(content)
    assert "--partial (partial=True in Python)" in message
    samples, sentence = _part(content)
    assert 0 < len(samples) / SAMPLE_RATE < 0.98 * SECONDS or kind[0] == "a.avi"  # whose last part is an index
    assert f"{len(samples) / SAMPLE_RATE:.1f} s of sound" in sentence
    assert "--partial" not in sentence


@pytest.mark.parametrize("kind", COUNTED, ids=_names(COUNTED))
def test_a_cut_shows_before_anything_is_decoded(whole, kind: Kind) -> None:
    content = whole(kind)
    require_whole(content)
    with pytest.raises(CutShortError):
        require_whole(content[: len(content) // 2])


@pytest.mark.parametrize("kind", INDEX_LAST, ids=_names(INDEX_LAST))
def test_a_file_whose_index_comes_last_says_that_nothing_of_it_can_be_read(whole, kind: Kind) -> None:
    content = whole(kind)
    message = _refused(content[: len(content) // 2])
    assert "bytes are missing, and without them nothing of it can be read" in message
    assert "--partial" not in message


@pytest.mark.parametrize("kind", COUNTED, ids=_names(COUNTED))
def test_a_stream_that_stops_half_way_is_refused_at_its_end(whole, kind: Kind) -> None:
    content = whole(kind)
    assert len(load_audio(_Stream(content))) > 0.98 * SECONDS * SAMPLE_RATE  # type: ignore[arg-type]
    if kind[0] != "parts.mp4":  # its parts are counted where they lie, and a stream has passed them
        _refused(_Stream(content[: len(content) // 2]))


def test_both_lengths_are_named(whole) -> None:
    for kind in [kind for kind in COUNTED if kind[0] in ("s16.wav", "a.flac", "a.mp3", "a.mkv", "first.m4a")]:
        content = whole(kind)[: len(whole(kind)) // 2]
        samples, sentence = _part(content)
        assert f"{len(samples) / SAMPLE_RATE:.1f} s of sound are there of " in sentence
        assert "8.0 s that it announces" in sentence


@pytest.mark.parametrize("lost", [1, 100])
@pytest.mark.parametrize("name", ["a.ogg", "a.flac", "a.aac", "first.m4a", "pcm.mkv"])
def test_a_last_packet_that_breaks_off_is_enough(whole, name: str, lost: int) -> None:
    (kind,) = (kind for kind in COUNTED if kind[0] == name)
    _refused(whole(kind)[:-lost])


@settings(deadline=None, max_examples=60)
@given(data=st.data(), kind=st.sampled_from([kind for kind in COUNTED if kind[0] not in BY_THE_PIECE]))
def test_a_file_cut_anywhere_between_its_first_and_last_second_is_refused(
    whole, data: st.DataObject, kind: Kind
) -> None:
    content = whole(kind)
    stop = data.draw(st.integers(len(content) // 8, len(content) * 7 // 8))
    for source in (content[:stop], _Stream(content[:stop])):
        with pytest.raises(AudioError):
            load_audio(source)  # type: ignore[arg-type]


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
            load_audio(source, on_warning=lambda _: None, on_cut=lambda _: None)  # type: ignore[arg-type]
    with contextlib.suppress(AudioError):
        require_whole(bytes(content))


def test_a_gigabyte_of_zeros_behind_a_head_is_no_reason_to_look_for_ever(tmp_path: Path, tone) -> None:
    for name, head in (("a.wav", _wav(tone)[:36]), ("a.caf", b"caff\0\1\0\0"), ("a.mp4", b"\0\0\0\x08free")):
        with (tmp_path / name).open("wb+") as file:
            file.write(head)
            file.truncate(1 << 30)
            assert stated_extent(file).missing == 0


def test_of_a_video_the_sounds_own_duration_counts(tmp_path: Path, encode, tone) -> None:
    content = encode(tmp_path / "a.mkv", tone(SECONDS, 48_000), 48_000, "aac", picture=True).read_bytes()
    require_whole(content)
    assert "of 8.0 s that it announces" in _refused(content[: len(content) // 2])


# Files that are whole


@pytest.mark.parametrize("kind", [*COUNTED, *INDEX_LAST, *UNCOUNTED], ids=_names([*COUNTED, *INDEX_LAST, *UNCOUNTED]))
def test_a_whole_file_of_every_kind_is_taken(whole, kind: Kind) -> None:
    require_whole(whole(kind))
    assert len(load_audio(whole(kind))) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from([*COUNTED, *INDEX_LAST, *UNCOUNTED]), milliseconds=st.integers(200, 4_000))
def test_no_whole_file_is_refused_whatever_its_kind_and_length(tmp_path, encode, tone, kind, milliseconds) -> None:
    name, rate, codec, options = kind
    path = encode(tmp_path / name, tone(milliseconds / 1000, rate), rate, codec, container_options=options)
    require_whole(path)
    load_audio(path)
    if kind not in INDEX_LAST:
        with path.open("rb") as file:
            load_audio(_Stream(file.read()))  # type: ignore[arg-type]


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
    require_whole(content)
    for source in (content, _Stream(content)):
        samples = load_audio(source, on_warning=lambda _: None)  # type: ignore[arg-type]
        assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("row", [row for row in LIVE if row[0] in ("ogg", "webm", "matroska", "flv", "mp4")])
def test_what_was_never_sent_is_no_cut(tone, row) -> None:
    form, rate, codec, options = row
    content = _recorded(tone, form, rate, codec, gap=(2, 5), **options)
    require_whole(content)
    assert len(load_audio(content, on_warning=lambda _: None)) / SAMPLE_RATE == pytest.approx(5, abs=0.1)


def _wav(tone) -> bytes:
    data = (tone(2.0) * 32767).astype("<i2").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", len(head) + 8 + len(data)) + head + b"data" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize("riff", [0, 8, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000024, 0xFFFFFFFF - 36])
@pytest.mark.parametrize("data", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 36])
def test_a_length_in_a_wav_that_stands_for_none_is_no_announcement(tone, riff: int, data: int) -> None:
    content = bytearray(_wav(tone))
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    require_whole(bytes(content))
    for source in (bytes(content), _Stream(bytes(content))):
        assert len(load_audio(source)) == 2 * SAMPLE_RATE  # type: ignore[arg-type]


@pytest.mark.parametrize("counted", [8, 44])
def test_a_wav_that_counts_its_own_header_twice_is_whole(tone, counted: int) -> None:
    content = bytearray(_wav(tone))
    for place in (4, 40):
        content[place : place + 4] = struct.pack("<I", struct.unpack("<I", content[place : place + 4])[0] + counted)
    assert len(load_audio(bytes(content))) == 2 * SAMPLE_RATE


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
    require_whole(content)
    samples = load_audio(content, on_warning=lambda _: None)
    assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    if not bare:
        _refused((before + whole(kind))[: len(before) + len(whole(kind)) // 2] + behind[:128])


def test_mp3s_one_after_another_are_no_cut(whole) -> None:
    (kind,) = (kind for kind in COUNTED if kind[0] == "a.mp3")
    content = whole(kind) * 2
    require_whole(content)
    assert len(load_audio(content, on_warning=lambda _: None)) / SAMPLE_RATE == pytest.approx(2 * SECONDS, abs=0.2)


def test_oggs_one_after_another_are_no_cut(whole) -> None:
    (kind,) = (kind for kind in COUNTED if kind[0] == "a.ogg")
    require_whole(whole(kind) * 2)
    load_audio(whole(kind) * 2, on_warning=lambda _: None)
    _refused((whole(kind) * 2)[:-1000])


def test_what_lies_behind_a_container_is_no_cut(whole) -> None:
    for kind in [*COUNTED, *INDEX_LAST]:
        if kind[0].rsplit(".")[-1] in ("wav", "aiff", "m4a", "mp4", "mkv", "webm", "ogg"):
            for behind in (bytes(300), b"\x00\x00\x00\x14ABCD" + bytes(12), b"\x7f\xff\xff\xffwords of somebody"):
                require_whole(whole(kind) + behind)


def test_an_edited_mp4_of_which_a_part_is_shown_is_whole(whole) -> None:
    """Phones cut a recording by an edit list: the sound is all there, and some of it is not to be heard."""
    for kind in [kind for kind in [*COUNTED, *INDEX_LAST] if kind[0] in ("first.m4a", "a.m4a")]:
        content = bytearray(whole(kind))
        place = content.index(b"elst") + 12  # behind version and count: segment duration, media time
        content[place : place + 8] = struct.pack(">II", 3000, 2 * 44_100)
        require_whole(bytes(content))
        samples = load_audio(bytes(content))
        assert len(samples) / SAMPLE_RATE == pytest.approx(3, abs=0.1)
