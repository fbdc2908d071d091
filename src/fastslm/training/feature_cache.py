"""The frozen encoder's output, computed once and kept on disk.

Whisper is frozen, so its frames of a window never change: 1500 × 384 numbers in bfloat16, 1.15 MB a window at tiny
size. A cache folder is named by a digest of everything its content depends on, so a stale one is never read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.data.manifest import Clip, manifest_digest, read_manifest
from fastslm.data.packing import PackedWindow, Placement, pack, refuse_long, render
from fastslm.errors import ManifestError
from fastslm.features import window_mel
from fastslm.model.base_weights import load_encoder
from fastslm.training.disk import writing
from fastslm.training.recipe import Recipe
from fastslm.weights import resolve
from fastslm.writing import json_text

LAYOUT = 1
ENCODE_BATCH = 8
CPU = torch.device("cpu")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WindowLabel:
    """What is known of a cached window: its text, how many encoder frames hold something, its clips, and its name."""

    text: str
    frames: int
    clips: tuple[str, ...]
    # Unlike the text, of no other window in any packing.
    name: str = ""


class CachedWindows:
    """Windows' encoder frames on disk, memory-mapped, with their labels."""

    def __init__(self, folder: Path):
        description = json.loads((folder / "description.json").read_text())
        self.folder = folder
        self.shape: tuple[int, int] = (description["frames"], description["hidden_size"])
        # Not `splitlines`, which also takes for ends of lines what texts may hold, such as U+2028.
        with (folder / "labels.jsonl").open(encoding="utf-8") as labels:
            rows = [json.loads(line) for line in labels]
        self.labels = [
            WindowLabel(row["text"], row["frames"], tuple(row["clips"]), f"{folder.name}-{index}")
            for index, row in enumerate(rows)
        ]
        self._data = np.memmap(folder / "frames.bf16", np.int16, "r", shape=(len(rows), *self.shape))

    def __len__(self) -> int:
        return len(self.labels)

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), frames, hidden) in bfloat16"""
        return torch.from_numpy(np.stack([self._data[i] for i in indices])).view(torch.bfloat16)


@dataclass(frozen=True)
class Features:
    """The encoder's frames of some windows: what they are, and where they lie once they are encoded.

    Attributes:
        root: the cache.
        description: all that the content depends on.
        encoder: the name of the frozen encoder.
        windows: lays out the windows, without any sound.
    """

    root: Path
    description: dict[str, object]
    encoder: str
    windows: Callable[[], list[PackedWindow]]

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.root / _digest(self.description)

    @property
    def cached(self) -> bool:
        """Whether they are encoded already."""
        return (self.folder / "description.json").is_file()

    def size(self) -> int:
        """Bytes of the frames, encoded or not."""
        if self.cached:
            return (self.folder / "frames.bf16").stat().st_size
        config: Any = WhisperConfig.from_pretrained(resolve(self.encoder))
        return len(self.windows()) * config.max_source_positions * config.d_model * 2


def cache_training_windows(
    recipe: Recipe, variant: int, progress: Progress | None = None, device: torch.device = CPU
) -> CachedWindows:
    """The windows of one packing of the training data. Made if they are not there yet.

    Args:
        variant: which packing, 0 … recipe.data.variants − 1.
        progress: called with (windows done, windows in all).
        device: where the encoder runs.

    Raises:
        ManifestError: no clip has text, a clip is longer than a window, a recording is not there.
        TrainingError: the features cannot be written.
    """
    return _cached(training_features(recipe, variant), progress, device)


def training_features(recipe: Recipe, variant: int) -> Features:
    """The windows of one packing of the training data. Arguments and errors as of `cache_training_windows`."""
    data = recipe.data

    def windows() -> list[PackedWindow]:
        rng = np.random.default_rng([recipe.seed, variant, 99])
        clips: list[Clip] = []
        for source in data.train:
            with_text = [clip for clip in read_manifest(source.path) if clip.text]
            take = rng.permutation(len(with_text))[: round(len(with_text) * source.share)]
            clips += [with_text[i] for i in sorted(take)]
        if not clips:
            raise ManifestError(
                f"{', '.join(str(t.path) for t in data.train)}: no clip with a text takes part; "
                "training needs at least one."
            )
        sounds = read_manifest(data.sounds) if data.sounds else []
        return pack(clips, sounds, data.packing, (recipe.seed, variant))

    description = {
        "layout": LAYOUT,
        "encoder": recipe.model.encoder,
        "train": [[manifest_digest(t.path), t.share] for t in data.train],
        "sounds": manifest_digest(data.sounds) if data.sounds else None,
        "packing": data.packing.described(),
        "seed": [recipe.seed, variant],
    }
    encoder = recipe.model.encoder
    return Features(data.cache, _with_encoder(description, encoder), encoder, windows)


def check_recordings(recipe: Recipe) -> None:
    """Make sure, before anything is encoded, that all recordings that training windows will need are there and fit.

    Packings that are cached need none: their recordings may lie elsewhere.

    Raises:
        ManifestError: a recording is missing, or is longer than a window.
    """
    if all(training_features(recipe, variant).cached for variant in range(recipe.data.variants)):
        return
    for source in recipe.data.train:
        clips = [clip for clip in read_manifest(source.path) if clip.text]
        refuse_long(clips)
        for clip in clips:
            clip.check_audio()
    for clip in read_manifest(recipe.data.sounds) if recipe.data.sounds else []:
        clip.check_audio()


def cache_validation_windows(
    recipe: Recipe, progress: Progress | None = None, device: torch.device = CPU
) -> CachedWindows:
    """Validation clips, each alone at the start of a window. Arguments and errors as of training windows."""
    return _cached(validation_features(recipe), progress, device)


def validation_features(recipe: Recipe) -> Features:
    """Validation clips, each alone at the start of a window."""
    data = recipe.data
    description = {
        "layout": LAYOUT,
        "encoder": recipe.model.encoder,
        "validation": manifest_digest(data.validation),
        "clips": data.validation_clips,
    }

    def windows() -> list[PackedWindow]:
        clips = [clip for clip in read_manifest(data.validation) if clip.text][: data.validation_clips]
        if not clips:
            raise ManifestError(f"{data.validation}: no clip has a text; validation needs at least one.")
        refuse_long(clips)
        return [PackedWindow((_alone(clip),), None, None, (0,)) for clip in clips]

    encoder = recipe.model.encoder
    return Features(data.cache, _with_encoder(description, encoder), encoder, windows)


def _alone(clip: Clip) -> Placement:
    return Placement(clip, 0, min(round(clip.duration * SAMPLE_RATE), WINDOW_SAMPLES), 1.0, 0.0)


def _cached(features: Features, progress: Progress | None, device: torch.device) -> CachedWindows:
    folder = features.folder
    if not features.cached:
        with writing(features.root, "the cache of encoder features"):
            features.root.mkdir(parents=True, exist_ok=True)
        # A second process that wants the same windows waits for the first.
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not features.cached:
                encoder = load_encoder(features.encoder).eval()
                _encode(folder, features.description, encoder, features.windows(), progress, device)
    return CachedWindows(folder)


def _with_encoder(description: dict[str, object], encoder_name: str) -> dict[str, object]:
    """A name is pinned, what lies in a folder is not."""
    folder = Path(encoder_name)
    return {**description, "encoder_files": _digests(folder)} if folder.is_dir() else description


def _digest(description: dict[str, object]) -> str:
    """Names the folder of what is described."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def _encode(
    folder: Path,
    description: dict[str, object],
    encoder: WhisperEncoder,
    windows: list[PackedWindow],
    progress: Progress | None,
    device: torch.device,
) -> None:
    """Encode windows into a folder beside the final one, going on where an earlier attempt was cut off."""
    config: WhisperConfig = encoder.config
    module: Any = encoder  # transformers' mixins hide `to` from type checkers
    module.to(device)
    shape = (config.max_source_positions, config.d_model)
    partial = folder.with_name(folder.name + ".partial")
    what = "the encoder's features"
    with writing(partial, what):
        partial.mkdir(parents=True, exist_ok=True)
        file = partial / "frames.bf16"
        file.touch()
    window_bytes = shape[0] * shape[1] * 2
    done = min(file.stat().st_size // window_bytes, len(windows))
    # Whole batches only: what a window rounds to may depend on the others of its batch.
    done -= done % ENCODE_BATCH
    # Unbuffered, so that nothing is left to fail when the file is closed.
    with file.open("r+b", buffering=0) as out, ThreadPoolExecutor(1) as reader:
        out.seek(done * window_bytes)
        out.truncate()
        batches = [windows[i : i + ENCODE_BATCH] for i in range(done, len(windows), ENCODE_BATCH)]

        def mel(batch: list[PackedWindow]) -> torch.Tensor:
            return window_mel([render(window) for window in batch], config.num_mel_bins)

        # The next batch is decoded while this one is encoded.
        ahead = reader.submit(mel, batches[0]) if batches else None
        for index, batch in enumerate(batches):
            assert ahead is not None
            features = ahead.result()
            ahead = reader.submit(mel, batches[index + 1]) if index + 1 < len(batches) else None
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                frames = encoder(features.to(device)).last_hidden_state
            rest = memoryview(frames.to(torch.bfloat16).contiguous().view(torch.int16).cpu().numpy().tobytes())
            with writing(partial, what):
                while rest:
                    rest = rest[out.write(rest) :]
            done += len(batch)
            if progress is not None:
                progress(done, len(windows))
    with writing(partial, what):
        with (partial / "labels.jsonl").open("w", encoding="utf-8") as labels:
            for window in windows:
                labels.write(json_text(_label(window, shape[0])) + "\n")
        final = {**description, "frames": shape[0], "hidden_size": shape[1]}
        (partial / "description.json").write_text(json.dumps(final, indent=1))
        os.replace(partial, folder)


def _label(window: PackedWindow, frames: int) -> dict[str, object]:
    end = max((p.start + p.samples for p in window.placements), default=0)
    return {
        "text": window.text,
        "frames": min(frames, -(-end // (WINDOW_SAMPLES // frames))),
        "clips": [p.clip.id for p in window.placements],
    }


def _digests(folder: Path) -> list[list[str]]:
    """Every file of an encoder's folder with the SHA-256 of its content."""
    found = []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with file.open("rb") as content:
            found.append([file.name, hashlib.file_digest(content, "sha256").hexdigest()])
    return found
