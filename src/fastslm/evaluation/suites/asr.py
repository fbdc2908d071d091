"""Recognition: the word error rate of transcripts over a manifest.

fastslm evaluate asr --manifest FILE.jsonl --json
"""

import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import numpy as np
import torch
import transformers

from fastslm import __version__
from fastslm.audio import SAMPLE_RATE
from fastslm.data.manifest import Clip, manifest_digest, read_manifest
from fastslm.errors import AudioError, ManifestError, OptionError
from fastslm.evaluation.metrics import NORMALIZER, SCORER, ErrorRates, error_rates
from fastslm.longform.output import write_text
from fastslm.longform.transcription import Reader, TranscriptionOptions
from fastslm.speech import FastSLM

SYSTEMS = ("fastslm", "whisper")


class System(Protocol):
    """What can be measured: recordings in, texts out, in the same order."""

    @property
    def facts(self) -> dict[str, Any]:
        """What says which system it was, for the report."""
        ...

    def hear(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[str, str]]:
        """Text and finish reason of each recording, float32 (samples,), 16 kHz mono."""
        ...


class FastSLMSystem:
    """A FastSLM with one reader."""

    def __init__(self, model: FastSLM, reader: str = "auto"):
        self.model = model
        options = TranscriptionOptions(reader=reader)  # type: ignore[arg-type]
        self.reader: Reader = options.resolved(model.model).reader

    @property
    def facts(self) -> dict[str, Any]:
        """As `System`."""
        parameters = next(self.model.model.parameters())
        return {
            "system": "fastslm",
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "reader": self.reader,
            "device": parameters.device.type,
            "dtype": str(parameters.dtype).removeprefix("torch."),
        }

    def hear(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[str, str]]:
        """As `System`."""
        for transcript in self.model.transcribe_many(waveforms, reader=self.reader):
            yield transcript.text, transcript.finish_reason


def system_named(name: str) -> str:
    """Check the name of a system.

    Raises:
        OptionError: it is unknown; the nearest is named.
    """
    if name in SYSTEMS:
        return name
    near = get_close_matches(name.lower(), SYSTEMS, n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    raise OptionError(f"There is no system {name!r}{hint}: choose one of {', '.join(SYSTEMS)}.")


def read_clips(manifest: Path, limit: int | None = None) -> list[Clip]:
    """The first `limit` clips of a manifest, or all.

    Raises:
        ManifestError: it cannot be read, or a clip has no text.
    """
    clips = read_manifest(manifest)[:limit]
    for clip in clips:
        if not clip.text or not clip.text.strip():
            raise ManifestError(f"{manifest}: the clip {clip.id} has no text to compare with: leave such clips out.")
        clip.audio_file()
    return clips


def evaluate_asr(
    system: System,
    clips: list[Clip],
    manifest: Path,
    predictions: Path | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Transcribe every clip and count the errors.

    Args:
        predictions: where every reference and hypothesis is written, as JSONL, whole or not at all.
        on_clip: told how many clips are done, after each.

    Returns:
        wer, words and clips; cer, 95 % interval, kinds of errors; seconds and real-time factor (seconds of processing,
        decoding included, for a second of audio); and what else is needed to get the same figures again.

    Raises:
        AudioError: a clip cannot be read.
    """
    samples: list[int] = []

    def waveforms() -> Iterator[np.ndarray]:
        for clip in clips:
            try:
                waveform = clip.read()
            except AudioError as error:
                raise AudioError(f"{manifest}, clip {clip.id}: {error}") from error
            samples.append(len(waveform))
            yield waveform

    started = monotonic()
    heard: list[tuple[str, str]] = []
    for result in system.hear(waveforms()):
        heard.append(result)
        if on_clip:
            on_clip(len(heard))
    took = monotonic() - started
    rates = error_rates([clip.text or "" for clip in clips], [text for text, _ in heard])
    if predictions is not None:
        _write_predictions(predictions, clips, heard, rates)
    seconds = sum(samples) / SAMPLE_RATE
    low, high = rates.wer_interval
    return {
        "wer": round(rates.wer, 5),
        "words": rates.total("words"),
        "clips": len(clips),
        "cer": round(rates.cer, 5),
        "wer_interval_95": [round(low, 5), round(high, 5)],
        **{kind: rates.total(kind) for kind in ("substitutions", "deletions", "insertions")},
        "cut_clips": sum(reason == "length" for _, reason in heard),
        "seconds": round(seconds, 2),
        "processing_seconds": round(took, 2),
        "real_time_factor": round(took / seconds, 5),
        **system.facts,
        "manifest": manifest.name,
        "manifest_sha256": manifest_digest(manifest),
        "scorer": SCORER,
        "normalizer": NORMALIZER,
        "versions": {
            "fastslm": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def summary(report: dict[str, Any]) -> str:
    """A report for a person."""
    low, high = report["wer_interval_95"]
    kinds = f"{report['substitutions']} substituted, {report['deletions']} left out, {report['insertions']} inserted"
    return "\n".join(
        (
            f"words wrong (WER)       {report['wer']:.1%}  (95 % interval {low:.1%} to {high:.1%})",
            f"                        of {report['words']} words in {report['clips']} clips: {kinds}",
            f"characters wrong (CER)  {report['cer']:.1%}",
            f"transcript by           {report['model']}, {report['reader']}",
            f"real-time factor        {report['real_time_factor']:.3f}  ({report['seconds']:.0f} s of speech in "
            f"{report['processing_seconds']:.1f} s)",
            f"scored by               {report['scorer']}, {report['normalizer']}",
        )
    )


def _write_predictions(path: Path, clips: list[Clip], heard: list[tuple[str, str]], rates: ErrorRates) -> None:
    rows = (
        {
            "id": clip.id,
            "duration": clip.duration,
            "text": clip.text,
            "hypothesis": text,
            "finish_reason": reason,
            "normalized": asdict(errors),
        }
        for clip, (text, reason), errors in zip(clips, heard, rates.clips, strict=True)
    )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
