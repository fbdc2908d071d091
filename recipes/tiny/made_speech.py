"""Texts → speech made by a small neural voice, in many voices, rooms and noises, as a manifest with tar shards.

    python recipes/tiny/made_speech.py cache/made cache/texts.jsonl --hours 100 --seed 1 \\
        --noises ../shared/data/environment/train.jsonl

A text is a JSONL row as `texts.py` writes it: `id`, `sentences` in running order, `kind` and `source`; a dialogue also
has `speakers`, a number for each sentence. hibari-tts has one voice. Tape speed (0.78 to 1.28, which moves the pitch),
pace and spectral tilt make a different person of it for each document, and 30 % of the documents are read by several
people in turn. 45 % sound over noise, half of that recorded (`--noises`), 30 % in a room, 15 % through a codec.

A row of OUT/train.jsonl is a window of at most 30 s, filled with whole sentences. `document` and `position` put the
windows of a document together again. `speaker` is the document too, so `fastslm data compose --by speaker` does the
same. `segments` give the times, text and person of each sentence. Texts are as written, with digits spoken out.

Everything that is drawn derives from (seed, document id). Speech is made in parts of 20 documents: a run that was
stopped goes on after its last whole part. hibari-tts alone speaks 100 hours in about 50 minutes of one core. An hour of
speech takes 11 MB.

What is made has the licence of its text, which its row names. Needs hibari-tts, and num2words where a text has digits.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pydantic
import soxr
from numbers_as_words import spoken

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.data.augmentation import Codec, Effects, encode, sample_generator, sound_level
from fastslm.data.manifest import Clip, manifest_lines, read_manifest, write_manifest
from fastslm.data.shards import sharded_manifest
from fastslm.data.speaking import BIT_RATE, OPUS_RATE
from fastslm.errors import FastSLMError, ManifestError, OptionError

PART_DOCUMENTS = 20
TAPE_SPEEDS = (0.78, 1.28)
PACES = (0.85, 1.3)
VOICE_SPEEDS = (0.62, 1.6)  # beyond these the voice slurs
TILT_DB = 2.5  # per octave, at most
LEVEL = 0.08  # of each sentence, before the gain of its document
SHORTEST = SAMPLE_RATE // 10
TAIL = SAMPLE_RATE // 5  # after the last sentence of a window
CODECS: tuple[Codec, ...] = ("opus", "mp3", "mu-law")


class Voice(Protocol):
    """What speaks: hibari's interface."""

    sample_rate: int

    def __call__(self, text: str, speed: float = 1.0, seed: int | None = None) -> np.ndarray: ...


class Document(pydantic.BaseModel):
    """A text to be spoken. Other keys are ignored."""

    model_config = pydantic.ConfigDict(frozen=True)
    id: str = pydantic.Field(min_length=1)
    sentences: list[str] = pydantic.Field(min_length=1)
    kind: str | None = None
    source: str | None = None
    licence: str | None = None
    speakers: list[int] | None = None

    @pydantic.model_validator(mode="after")
    def _a_speaker_each(self) -> "Document":
        if self.speakers is not None and len(self.speakers) != len(self.sentences):
            raise ValueError(f"{len(self.sentences)} sentences need as many speakers, not {len(self.speakers)}")
        return self


@dataclass(frozen=True)
class Person:
    """One way to play the voice."""

    tape_speed: float
    pace: float
    tilt_db: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Person":
        """Tape speeds evenly in pitch; half of the people without tilt."""
        tape = math.exp(rng.uniform(*map(math.log, TAPE_SPEEDS)))
        pace, tilt, tilted = rng.uniform(*PACES), rng.uniform(-TILT_DB, TILT_DB), rng.random() < 0.5
        return cls(tape, pace, tilt if tilted else 0.0)

    def says(self, text: str, voice: Voice, seed: int) -> np.ndarray:
        """(samples,) float32 at 16 kHz, at the level `LEVEL`; empty where there is nothing to say."""
        speed = float(np.clip(self.pace / self.tape_speed, *VOICE_SPEEDS))
        wave = np.asarray(voice(text, speed=speed, seed=seed), np.float32)
        wave = soxr.resample(wave, voice.sample_rate * self.tape_speed, SAMPLE_RATE).astype(np.float32)
        if self.tilt_db and len(wave):
            wave = tilted(wave, self.tilt_db)
        return wave * np.float32(LEVEL / max(sound_level(wave), 1e-4))


@dataclass(frozen=True)
class Scene:
    """How a document sounds: who reads it, where, and how far apart the sentences are."""

    people: tuple[Person, ...]
    in_turn: bool
    noise: int | None
    effects: Effects
    gain: float
    pause_seconds: float

    @classmethod
    def drawn(cls, document: Document, noises: int, rng: np.random.Generator) -> "Scene":
        """As many numbers are drawn whatever comes of them, but for the people."""
        several, number = rng.random() < 0.3 or document.kind == "dialogue", int(rng.integers(2, 5))
        if document.speakers is not None:
            number = max(document.speakers) + 1
        people = tuple(Person.drawn(rng) for _ in range(number if several or document.speakers is not None else 1))
        noisy, which, room, hiss, coded = rng.random(5)
        codec = CODECS[int(rng.integers(len(CODECS)))] if coded < 0.15 else None
        decay, below, noise_db = rng.uniform(0.15, 0.7), rng.uniform(0, 15), rng.uniform(8, 40)
        effects = Effects(
            decay_seconds=float(decay) if room < 0.3 else None,
            reverberation_db=float(below),
            noise_db=float(noise_db) if noisy < 0.45 else None,
            codec=codec,
            bit_rate=16_000 if codec in ("opus", "mp3") else None,
            seed=int(rng.integers(2**31)),
        )
        # Half of the noises are white.
        noise = int(which * noises) if noises and hiss >= 0.5 else None
        gain, pause = 10 ** (rng.uniform(-12, 3) / 20), float(rng.uniform(0.15, 0.8))
        return cls(people, document.speakers is None, noise, effects, float(gain), pause)


@dataclass(frozen=True)
class Window:
    """At most 30 s of a document: (samples,) float32 at 16 kHz, and its sentences with their times and people."""

    wave: np.ndarray
    segments: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """What is said."""
        return " ".join(segment["text"] for segment in self.segments)


def tilted(wave: np.ndarray, db: float) -> np.ndarray:
    """`wave` with `db` more in each octave above 1 kHz, and less below."""
    frequencies = np.clip(np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE), 60, SAMPLE_RATE / 2)
    spectrum = np.fft.rfft(wave) * 10 ** (db * np.log2(frequencies / 1000) / 20)
    return np.fft.irfft(spectrum, len(wave)).astype(np.float32)


def windows(document: Document, voice: Voice, seed: int, noises: Sequence[Clip] = ()) -> Iterator[Window]:
    """What is heard of a document, in running order. Sentences that do not fit a window are left out."""
    rng = sample_generator((seed,), document.id)
    scene = Scene.drawn(document, len(noises), rng)
    noise = noises[scene.noise].read() if scene.noise is not None and scene.effects.noise_db is not None else None
    pieces: list[tuple[int, np.ndarray, str, int]] = []
    at, who = 0, 0
    for index, sentence in enumerate(document.sentences):
        before, breaks, turns, drawn = rng.uniform(0.05, 0.6), rng.random() < 0.02, rng.random() < 0.4, rng.random()
        pause, voice_seed = rng.exponential(scene.pause_seconds), int(rng.integers(2**31))
        if document.speakers is not None:
            who = document.speakers[index]
        elif turns:
            who = int(drawn * len(scene.people))
        if not re.search(r"[^\W\d_]", sentence):
            continue
        wave = scene.people[who].says(sentence, voice, voice_seed)
        if not SHORTEST <= len(wave) <= WINDOW_SAMPLES - SAMPLE_RATE:
            continue
        if pieces and (breaks or at + len(wave) + TAIL > WINDOW_SAMPLES):
            yield _heard(pieces, scene, noise)
            pieces = []
        if not pieces:
            at = int(before * SAMPLE_RATE)
        pieces.append((at, wave, sentence, who))
        at += len(wave) + int(pause * SAMPLE_RATE)
    if pieces:
        yield _heard(pieces, scene, noise)


def _heard(pieces: list[tuple[int, np.ndarray, str, int]], scene: Scene, noise: np.ndarray | None) -> Window:
    start, last, _, _ = pieces[-1]
    dry = np.zeros(start + len(last) + TAIL, np.float32)
    for at, wave, _, _ in pieces:
        dry[at : at + len(wave)] += wave
    wave = scene.effects.apply(dry, noise) * np.float32(scene.gain)
    wave /= max(1.0, float(np.abs(wave).max()))
    segments = [
        {"start": at / SAMPLE_RATE, "end": (at + len(piece)) / SAMPLE_RATE, "text": text, "person": who}
        for at, piece, text, who in pieces
    ]
    return Window(wave.astype(np.float32), segments)


def read_documents(paths: Iterable[Path]) -> list[Document]:
    """All documents, with their digits spoken out.

    Raises:
        ManifestError: a file is missing, or a line is no document, or an id occurs twice.
        OptionError: a text has digits, and num2words is not installed.
    """
    found: dict[str, Document] = {}
    for path in paths:
        for number, line in manifest_lines(path):
            try:
                document = Document.model_validate_json(line)
            except pydantic.ValidationError as error:
                fault = error.errors()[0]
                key = ".".join(map(str, fault["loc"]))
                raise ManifestError(f"{path}, line {number}: {key} {fault['msg']}; correct the line.") from None
            if document.id in found:
                raise ManifestError(
                    f"{path}, line {number}: the id {document.id} occurs twice; give every text its own."
                )
            said = [spoken(sentence) for sentence in document.sentences]
            found[document.id] = document.model_copy(update={"sentences": said})
    if not found:
        raise ManifestError("There is no text to speak; give JSONL rows with id and sentences.")
    return list(found.values())


def rows_of(
    document: Document, voice: Voice, seed: int, noises: Sequence[Clip]
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """A manifest's row without its audio, and the audio as Ogg Opus, for each window of a document."""
    told = {key: value for key in ("kind", "source", "licence") if (value := getattr(document, key)) is not None}
    for position, window in enumerate(windows(document, voice, seed, noises)):
        row = {
            "id": f"{document.id}-{position:03d}",
            "audio": None,
            "duration": len(window.wave) / SAMPLE_RATE,
            "text": window.text,
            "language": "en",
            "speaker": document.id,
            "label_kind": "synthetic",
            **told,
            "document": document.id,
            "position": position,
            "seed": seed,
            "segments": window.segments,
        }
        yield row, encode(window.wave, "libopus", "ogg", OPUS_RATE, BIT_RATE)


def make(
    out: Path, documents: Sequence[Document], voice: Voice, seed: int, hours: float, noises: Sequence[Clip] = ()
) -> list[dict[str, Any]]:
    """Make speech until `out` holds `hours` of it, or all documents. What is there is kept. Returns all rows.

    Raises:
        OptionError: what is in `out` was made with another seed, or `hours` is not above 0.
        FastSLMError: something cannot be written.
    """
    if not hours > 0:
        raise OptionError(f"--hours is {hours:g}; ask for more than 0.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastSLMError(f"{out} cannot be made ({error.strerror}): choose another folder.") from error
    parts = sorted(out.glob("part-*.jsonl"))
    rows = [json.loads(line) for part in parts for _, line in manifest_lines(part)]
    if any(row["seed"] != seed for row in rows):
        raise OptionError(f"{out} holds speech of seed {rows[0]['seed']}; choose that seed, or another folder.")
    seconds, done = sum(row["duration"] for row in rows), {row["document"] for row in rows}
    # An order of its own for each seed that further texts do not change.
    ordered = sorted(documents, key=lambda document: sample_generator((seed, 1), document.id).random())
    waiting = [document for document in ordered if document.id not in done]
    number = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0
    for first in range(0, len(waiting), PART_DOCUMENTS):
        if seconds >= hours * 3600:
            break
        with sharded_manifest(out / f"part-{number:05d}.jsonl") as writer:
            for document in waiting[first : first + PART_DOCUMENTS]:
                if seconds >= hours * 3600:
                    break
                for row, content in rows_of(document, voice, seed, noises):
                    row["audio"] = writer.add(f"{row['id']}.opus", content)
                    writer.rows.append(row)
                    seconds += row["duration"]
        rows += writer.rows
        number += 1
        print(f"{out}: {seconds / 3600:.2f} h", flush=True)
    write_manifest(out / "train.jsonl", rows)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the speech. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder for the manifest train.jsonl and its shards")
    parser.add_argument("texts", type=Path, nargs="+", help="documents, as texts.py writes them")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop there (default: when all is spoken)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noises", type=Path, help="a manifest of recordings to lay under (default: white noise)")
    given = parser.parse_args(arguments)
    try:
        try:
            from hibari import Hibari
        except ImportError:
            raise OptionError("Speaking needs the package hibari-tts: pip install hibari-tts.") from None
        documents = read_documents(given.texts)
        noises = read_manifest(given.noises) if given.noises else []
        make(given.out, documents, Hibari(), given.seed, given.hours, noises)
    except FastSLMError as error:
        print(f"made_speech: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
