"""Where a recording's own headers say that it ends, in bytes: to be compared with what there is of it."""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

# Writers of RIFF count headers twice, or a padding that is not there.
HEADER_SLACK = 64
SIZE_UNKNOWN = (2**31, 2**32)  # what recorders that cannot go back write, give or take a header
UNKNOWN_SLACK = 2**16
HEAD_BYTES = 2**16  # in which the headers of a stream are looked for
OGG_HEADER_BYTES = 27  # of a page; the last of them counts the sizes that follow, a byte each
OGG_PAGE_BYTES = OGG_HEADER_BYTES + 255 + 255 * 255  # at most
MP4_BOXES = frozenset(b"ftyp styp moov moof mdat mfra sidx ssix free skip wide uuid emsg meta udta pdin prft".split())
MOST_PARTS = 1_000_000  # a day of fragments of a tenth of a second; gigabytes of zeros pass for more
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
# Of a frame of MPEG sound, by its header's two bits: how often the rate is halved, and the first of its rates.
MPEG_HALVED = {3: 0, 2: 1, 0: 2}
MPEG_RATES = (44_100, 48_000, 32_000)


@dataclass(frozen=True)
class Extent:
    """What a recording's own headers say of its length; `None` for what they do not say.

    Attributes:
        end: byte before which it does not end.
        seconds: of its sound, where FFmpeg does not read them.
        size: bytes that there are.
    """

    end: int | None = None
    seconds: float | None = None
    size: int = 0

    @property
    def missing(self) -> int:
        """Bytes that should be there and are not."""
        return 0 if self.end is None else max(0, self.end - self.size)


class Passing:
    """A stream that cannot be rewound, on its way to FFmpeg: it keeps what its extent is read from."""

    def __init__(self, source: BinaryIO):
        self._source = source
        self._head = b""
        self._tail = b""
        self._size = 0

    def read(self, size: int = -1) -> bytes:
        """As that of the stream."""
        content = self._source.read(size)
        if len(self._head) < HEAD_BYTES:
            self._head += content[: HEAD_BYTES - len(self._head)]
        self._tail = (self._tail + content)[-OGG_PAGE_BYTES:]
        self._size += len(content)
        return content

    def extent(self) -> Extent:
        """Of what has passed."""
        return _extent(io.BytesIO(self._head), self._size, self._tail)


def stated_extent(file: BinaryIO) -> Extent:
    """What a file that can be rewound says of its length. It is left where it stood."""
    start = file.tell()
    if start:  # what lies before is not a part of it, and byte numbers would differ
        return Extent()
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - OGG_PAGE_BYTES))
        tail = file.read(OGG_PAGE_BYTES)
        return _extent(file, size, tail)
    except OSError:  # who decodes it says what is the matter
        return Extent()
    finally:
        file.seek(start)


# Where containers say that they end, in bytes


def _extent(file: BinaryIO, size: int, tail: bytes) -> Extent:
    """Of a file, or of the first bytes of a stream, of `size` bytes whose last are `tail`."""
    file.seek(0)
    head = file.read(16)
    try:
        if head[:4] == b"OggS":
            end = _ogg_end(tail, size)
        elif head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
            end = _slack(_wav_end(file, size), size)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            end = _slack(_avi_end(file, size), size)
        elif head == W64:
            end = _slack(_number(file.read(8), "<Q"), size)
        elif head[:4] == b"FORM" and head[8:11] == b"AIF":
            end = _slack(_number(head[4:8], ">I", 8), size)
        elif head[:4] == b".snd":
            end = _slack(_number(head[8:12], ">I", int.from_bytes(head[4:8])), size)
        elif head[:4] == b"caff":
            end = _caf_end(file, size)
        elif head[4:8] in MP4_BOXES:
            end = _mp4_end(file, size)
        elif head[:4] == EBML:
            end = _matroska_end(file)
        else:
            return _mp3_extent(file, size)
    except struct.error:  # it breaks off within a header; FFmpeg finds that too
        end = None
    return Extent(end, None, size)


def _slack(end: int | None, size: int) -> int | None:
    return size if end is not None and size < end <= size + HEADER_SLACK else end


def _number(content: bytes, form: str, offset: int = 0) -> int | None:
    """A size that may stand for one that was not known when it was written."""
    (number,) = struct.unpack(form, content)
    unknown = number >= 2**62 or any(abs(number - value) < UNKNOWN_SLACK for value in SIZE_UNKNOWN)
    return None if number == 0 or unknown else number + offset


def _wav_end(file: BinaryIO, size: int) -> int | None:
    position, large = 12, None
    for _ in range(MOST_PARTS):
        if position + 8 > size:
            break
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"ds64":
            large = _number(file.read(16)[8:], "<Q", 0)
        if name == b"data":
            length = large if length == 2**32 - 1 and large else _number(struct.pack("<I", length), "<I")
            return None if length is None else position + 8 + length
        position += 8 + length + length % 2
    return None


def _avi_end(file: BinaryIO, size: int) -> int | None:
    """Of its last RIFF part: from a gigabyte on there are several."""
    end: int | None = 0
    while end is not None and end + 8 <= size:
        file.seek(end)
        name, content = file.read(4), file.read(4)
        if name != b"RIFF":
            break
        end = _number(content, "<I", end + 8)
    return end


def _caf_end(file: BinaryIO, size: int) -> int | None:
    position = 8
    for _ in range(MOST_PARTS):
        if position + 12 > size:
            break
        file.seek(position)
        if len(content := file.read(12)) < 12:  # of a stream, no more is at hand
            break
        _, length = struct.unpack(">4sq", content)
        if length < 0:
            return None
        position += 12 + length
    return position


def _mp4_end(file: BinaryIO, size: int) -> int | None:
    """Of its last box. Something else may follow it."""
    position = 0
    for _ in range(MOST_PARTS):
        if position + 8 > size:
            break
        file.seek(position)
        if len(content := file.read(8)) < 8:
            break
        length, name = struct.unpack(">I4s", content)
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if name not in MP4_BOXES or length < 8:  # 0: to the end, wherever that is
            break
        position += length
    return position


def _matroska_end(file: BinaryIO) -> int | None:
    file.seek(len(EBML))
    length = _ebml_size(file)
    if length is None:
        return None
    file.seek(length, io.SEEK_CUR)
    if file.read(4) != SEGMENT or (length := _ebml_size(file)) is None:
        return None
    return file.tell() + length


def _ebml_size(file: BinaryIO) -> int | None:
    """The number of leading zeros counts its further bytes; all ones stand for a size that is not known."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    further = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(further)) & (1 << 7 * (further + 1)) - 1
    return None if value == (1 << 7 * (further + 1)) - 1 else value


def _ogg_end(tail: bytes, size: int) -> int:
    """Of its last page; nothing counts the pages."""
    start = tail.rfind(b"OggS")
    if start < 0:
        return size
    page = tail[start:]
    if len(page) < OGG_HEADER_BYTES or len(page) < OGG_HEADER_BYTES + page[OGG_HEADER_BYTES - 1]:
        return size + 1  # it breaks off before it says how long it is
    sizes_end = OGG_HEADER_BYTES + page[OGG_HEADER_BYTES - 1]
    return size - len(page) + sizes_end + sum(page[OGG_HEADER_BYTES:sizes_end])


def _mp3_extent(file: BinaryIO, size: int) -> Extent:
    """What an MP3's first frame, that of Xing, Info or LAME, counts of frames and bytes."""
    start = _after_tags(file)
    file.seek(start)
    frame = file.read(64)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return Extent(size=size)
    halved, rate = MPEG_HALVED.get(frame[1] >> 3 & 3), frame[2] >> 2 & 3
    places = (36, 21, 13)  # behind what a stereo or mono frame holds before its sound
    place = next((place for place in places if frame[place : place + 4] in (b"Xing", b"Info")), None)
    if halved is None or rate == 3 or place is None:
        return Extent(size=size)
    flags, *counts = struct.unpack(">III", frame[place + 4 : place + 16])
    if not flags & 1:  # it counts no frames
        return Extent(size=size)
    samples = 576 if halved else 1152
    seconds = counts[0] * samples / (MPEG_RATES[rate] >> halved)
    return Extent(start + counts[1] if flags & 2 else None, seconds, size)


def _after_tags(file: BinaryIO) -> int:
    """Where the sound of an MP3 begins, behind its ID3v2 tags."""
    position = 0
    while True:
        file.seek(position)
        tag = file.read(10)
        if len(tag) < 10 or tag[:3] != b"ID3":
            return position
        length = 0
        for byte in tag[6:]:
            length = length << 7 | byte & 0x7F
        position += 10 + length + (10 if tag[5] & 0x10 else 0)
