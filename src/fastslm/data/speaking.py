"""Text → spoken clips by a small neural voice that its package carries whole (hibari-tts, English, one voice).

For what nobody recorded: text that may be spoken, with whatever is known of it. Clips and labels are `synthetic`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from fastslm.audio import MIN_SAMPLES, SAMPLE_RATE
from fastslm.data.augmentation import encode, sample_generator
from fastslm.data.shards import ShardWriter
from fastslm.errors import ManifestError, OptionError

BIT_RATE = 24_000
OPUS_RATE = 48_000
SPEEDS = (0.85, 1.2)  # drawn from for each passage: one voice, at least not one pace


def read_passages(path: Path) -> list[dict[str, Any]]:
    """What is to be spoken: JSONL rows with `text`, or plain text with one passage a line. Other keys are kept.

    Raises:
        ManifestError: the file is missing or empty, or a row has no text.
    """
    if not path.is_file():
        raise ManifestError(
            f"{path}: there is no such file; give JSONL rows with text, or plain text, a passage a line."
        )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: this is not UTF-8; save the file as UTF-8.") from None
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row: Any = {"text": line.strip()}
        if path.suffix == ".jsonl":
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ManifestError(
                    f"{path}, line {number}: this is not JSON ({error.msg}); correct the line."
                ) from None
            if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
                raise ManifestError(f"{path}, line {number}: there is no text to speak; write some as `text`.")
        row = {"id": f"{path.stem}-{number:05d}"} | row
        if row["id"] in seen:
            raise ManifestError(f"{path}, line {number}: the id {row['id']} occurs twice; give every row its own.")
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise ManifestError(f"{path}: there is no text to speak in it; write a passage a line.")
    return rows


def speak(
    passages: Sequence[dict[str, Any]], writer: ShardWriter, seed: int = 0, on_clip: Callable[[int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """A manifest's row for each passage, its audio as Ogg Opus in `writer`'s shards.

    Raises:
        OptionError: the voice is not installed.
        ManifestError: a passage in which there is nothing to be spoken.
    """
    try:
        from hibari import Hibari
    except ImportError:
        raise OptionError(
            "Speaking needs the package hibari-tts, which is not installed: pip install hibari-tts."
        ) from None
    voice = Hibari()
    for done, passage in enumerate(passages, start=1):
        rng = sample_generator((seed, 0), str(passage["id"]))
        speed = round(float(rng.uniform(*SPEEDS)), 3)
        wave: np.ndarray = voice(passage["text"], speed=speed, seed=int(rng.integers(2**31)))
        heard = soxr.resample(wave, voice.sample_rate, SAMPLE_RATE)
        if len(heard) < MIN_SAMPLES:
            raise ManifestError(f"{passage['id']}: nothing in {passage['text']!r} can be spoken; leave it out.")
        content = encode(heard, "libopus", "ogg", OPUS_RATE, BIT_RATE)
        made = {"audio": writer.add(f"{passage['id']}.opus", content), "duration": len(heard) / SAMPLE_RATE}
        kind = {"speaker": "hibari-heart", "language": "en", "voice_speed": speed, "label_kind": "synthetic"}
        yield passage | made | kind
        if on_clip:
            on_clip(done)
