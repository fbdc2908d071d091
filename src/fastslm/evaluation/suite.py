"""What all suites share: rows of a manifest → requests → raw predictions → figures that say how they were got.

Predictions are raw: what was asked, the right answer and what was written, untouched. All figures are computed from
them alone, so `rescore` gives the same ones without the model.
"""

import hashlib
import json
import platform
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import numpy as np
import torch
import transformers

from fastslm import __version__
from fastslm.audio import SAMPLE_RATE
from fastslm.data.manifest import Clip, manifest_digest, read_manifest
from fastslm.errors import AudioError, ManifestError, OptionError
from fastslm.evaluation.bootstrap import Measure
from fastslm.evaluation.predictions import Predictions
from fastslm.evaluation.systems import Heard, System

Row = dict[str, Any]


class Suite(ABC):
    """One kind of measurement.

    Attributes:
        name: what the command line calls it.
        task: of `fastslm.prompts.TASKS`, what systems are asked to do.
        titles: what a person calls each figure, and how it is written.
        needs: keys of the rows that the figures are computed from, beside what was written (`Predictions.require`).
        group_by: a key of the rows; every value of it gets figures of its own.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    titles: ClassVar[dict[str, tuple[str, str]]]
    needs: ClassVar[tuple[str, ...]]
    group_by: ClassVar[str | None] = None

    def wants(self, clip: Clip) -> bool:
        """Whether anything is asked about a clip of this suite's task."""
        return True

    @abstractmethod
    def rows(self, clip: Clip) -> list[Row]:
        """What is asked about a clip: for each, the request's arguments under `request`, and what is right.

        Raises:
            ManifestError: the clip lacks what this suite needs; the sentence names it.
        """

    @abstractmethod
    def measures(self, rows: Sequence[Row]) -> dict[str, Measure]:
        """The figures of predictions, the first the one that is steered by."""

    @abstractmethod
    def scored_by(self, rows: Sequence[Row]) -> dict[str, str | None]:
        """`scorer` and `normalizer`, with their versions."""

    def counts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What else is to be told of the predictions."""
        return {}

    def remarks(self, report: dict[str, Any]) -> list[str]:
        """Lines for a person below the figures."""
        return []


def read_requests(suite: Suite, manifest: Path, limit: int | None = None) -> list[tuple[Clip, list[Row]]]:
    """What a suite asks about the first `limit` clips of a manifest, or all. Clips of another `task` are left out.

    Clips of one recording that follow each other, such as several questions about it, are heard once.

    Raises:
        ManifestError: it cannot be read, none of its clips is for this suite, or one lacks audio or what is right.
    """
    own = [clip for clip in read_manifest(manifest) if clip.task in (None, suite.task) and suite.wants(clip)][:limit]
    if not own:
        raise ManifestError(
            f"{manifest}: no clip has the task {suite.task}, or what is asked for of it: give a manifest with such "
            "clips."
        )
    found: list[tuple[Clip, list[Row]]] = []
    for clip in own:
        clip.check_audio()
        shared = {"id": clip.id, "clip": _recording(clip), "duration": clip.duration, "language": clip.language}
        if clip.label_kind:
            shared["label_kind"] = clip.label_kind
        rows = [shared | row for row in suite.rows(clip)]
        if found and suite.task != "transcribe" and found[-1][1][0]["clip"] == shared["clip"]:
            found[-1][1].extend(rows)
        else:
            found.append((clip, rows))
    return found


def evaluate(
    suite: Suite,
    system: System,
    manifest: Path,
    requests: list[tuple[Clip, list[Row]]] | None = None,
    predictions: Path | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Ask a system all that a suite asks about a manifest, and score it.

    Args:
        predictions: where they are written, as JSONL, whole or not at all.
        requests, on_clip: as of `predict`.

    Returns:
        `report`'s.

    Raises:
        FastSLMError: the predictions cannot be written; else as `predict`.
    """
    done = predict(suite, system, manifest, requests, on_clip)
    if predictions is not None:
        done.save(predictions)
    return report(suite, done)


def predict(
    suite: Suite,
    system: System,
    manifest: Path,
    requests: list[tuple[Clip, list[Row]]] | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> Predictions:
    """Ask a system all that a suite asks about a manifest.

    Args:
        requests: from `read_requests`, by default all of the manifest's.
        on_clip: told how many recordings are done, after each.

    Returns:
        what was asked, is right and was written, with the run's facts: seconds of audio and of processing, decoding
        included, their ratio, the model and its fingerprint, the manifest's digest, versions, threads, date.

    Raises:
        OptionError: the system cannot do the suite's task.
        AudioError: a clip cannot be read.
    """
    requests = read_requests(suite, manifest) if requests is None else requests
    if suite.task not in system.tasks:
        name = system.facts(suite.task)["system"]
        raise OptionError(f"The system {name} cannot {suite.task}, only {', '.join(system.tasks)}: choose another.")
    samples: list[int] = []

    def heard() -> Iterator[Heard]:
        for clip, rows in requests:
            waveform = _waveform(clip, manifest)
            samples.append(len(waveform))
            yield Heard(waveform, [row["request"] for row in rows])

    started = monotonic()
    answered: list[Row] = []
    for index, ((_, rows), replies) in enumerate(zip(requests, system.reply(suite.task, heard()), strict=True)):
        for row, reply in zip(rows, replies, strict=True):
            answered.append({**row, "hypothesis": reply.text, "finish_reason": reply.finish_reason})
        if on_clip:
            on_clip(index + 1)
    took, seconds = monotonic() - started, sum(samples) / SAMPLE_RATE
    facts = {
        "suite": suite.name,
        **system.facts(suite.task),
        "seconds": round(seconds, 2),
        "processing_seconds": round(took, 2),
        "real_time_factor": round(took / seconds, 5),
        "manifest": manifest.name,
        "manifest_sha256": manifest_digest(manifest),
        "versions": {
            "fastslm": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Predictions(facts, answered)


def report(suite: Suite, predictions: Predictions) -> dict[str, Any]:
    """The figures of predictions, and all that is known of how they came about.

    Returns:
        for each figure its value, `_interval_95` and `_samples` (answers that it is of); the suite's counts; `clips`;
        `cut_clips`, those with an answer that ended at its token budget; the figures of each group; `scorer` and
        `normalizer` of this computation; the run's facts.
    """
    rows = predictions.rows
    groups: dict[str, Any] = {}
    if suite.group_by is not None:
        names = sorted({str(row[suite.group_by]) for row in rows if row.get(suite.group_by) is not None})
        for name in names:
            groups[name] = _figures(suite, [row for row in rows if str(row.get(suite.group_by)) == name])
    kinds = Counter(row["label_kind"] for row in rows if "label_kind" in row)
    return {
        **_figures(suite, rows),
        **suite.counts(rows),
        "clips": len({row["clip"] for row in rows}),
        "cut_clips": len({row["clip"] for row in rows if row["finish_reason"] == "length"}),
        **({f"by_{suite.group_by}": groups} if groups else {}),
        **({"label_kinds": dict(kinds)} if kinds else {}),
        **suite.scored_by(rows),
        **predictions.facts,
    }


def summary(suite: Suite, found: dict[str, Any]) -> str:
    """A report for a person."""
    lines = [_line(title, found, name, form) for name, (title, form) in suite.titles.items()]
    if suite.group_by is not None:
        first = next(iter(suite.titles))
        form = suite.titles[first][1]
        for group, own in found.get(f"by_{suite.group_by}", {}).items():
            # What a group has no sample of is not said of it.
            if own[first] is not None:
                lines.append(_line(f"  {group}", own, first, form))
    lines += [f"{'':24}{remark}" for remark in suite.remarks(found)]
    if found["cut_clips"]:
        lines.append(f"{'cut at the token budget':24}{found['cut_clips']} of {found['clips']} clips")
    by = found["scorer"] if found["normalizer"] is None else f"{found['scorer']}, {found['normalizer']}"
    return "\n".join(
        (
            *lines,
            f"{'written by':24}{found['model']}, {found['reader']}",
            f"{'real-time factor':24}{found['real_time_factor']:.3f}  ({found['seconds']:.0f} s of sound in "
            f"{found['processing_seconds']:.1f} s)",
            f"{'scored by':24}{by}",
        )
    )


def _figures(suite: Suite, rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, own in suite.measures(rows).items():
        value, interval = own.value, own.interval
        found[name] = None if value is None else round(value, 5)
        found[f"{name}_interval_95"] = None if interval is None else [round(end, 5) for end in interval]
        found[f"{name}_samples"] = own.samples
    return found


def _line(title: str, found: dict[str, Any], name: str, form: str) -> str:
    if found[name] is None:
        return f"{title:24}nothing to measure it on"
    low, high = found[f"{name}_interval_95"]
    samples = found[f"{name}_samples"]
    return f"{title:24}{found[name]:{form}}  (95 % interval {low:{form}} to {high:{form}}, {samples} samples)"


def _recording(clip: Clip) -> str:
    """The same for clips of one recording, such as several questions about it."""
    if clip.audio is None:
        pieces = json.dumps([piece.model_dump(mode="json") for piece in clip.pieces], sort_keys=True)
        return f"pieces {hashlib.sha256(pieces.encode()).hexdigest()[:16]}"
    return clip.audio.path if clip.audio.offset is None else f"{clip.audio.path}@{clip.audio.offset}"


def _waveform(clip: Clip, manifest: Path) -> np.ndarray:
    try:
        return clip.read()
    except AudioError as error:
        raise AudioError(f"{manifest}, clip {clip.id}: {error}") from error
