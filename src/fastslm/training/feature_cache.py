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

import numpy as np
import torch
from filelock import FileLock
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.data.manifest import Clip, manifest_digest, read_manifest
from fastslm.data.packing import PackedWindow, Placement, pack, render
from fastslm.errors import TrainingError
from fastslm.features import window_mel
from fastslm.model.base_weights import load_encoder
from fastslm.training.recipe import Recipe

LAYOUT = 1
ENCODE_BATCH = 8


@dataclass(frozen=True)
class WindowLabel:
    """What is known of a cached window: its text, how many encoder frames hold something, and its clips."""

    text: str
    frames: int
    clips: tuple[str, ...]


class CachedWindows:
    """Windows' encoder frames on disk, memory-mapped, with their labels."""

    def __init__(self, folder: Path):
        description = json.loads((folder / "description.json").read_text())
        self.folder = folder
        self.shape: tuple[int, int] = (description["frames"], description["hidden_size"])
        lines = (folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        self.labels = [WindowLabel(row["text"], row["frames"], tuple(row["clips"])) for row in rows]
        self._data = np.memmap(folder / "frames.bf16", np.int16, "r", shape=(len(rows), *self.shape))

    def __len__(self) -> int:
        return len(self.labels)

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), frames, hidden) in bfloat16"""
        return torch.from_numpy(np.stack([self._data[i] for i in indices])).view(torch.bfloat16)


def cache_training_windows(
    recipe: Recipe, variant: int, progress: Callable[[int, int], None] | None = None
) -> CachedWindows:
    """The windows of one packing of the training data. Made if they are not there yet.

    Args:
        variant: which packing, 0 … recipe.data.variants − 1.
        progress: called with (windows done, windows in all).
    """
    data = recipe.data
    description = {
        "layout": LAYOUT,
        "encoder": recipe.model.encoder,
        "train": [[manifest_digest(t.path), t.share] for t in data.train],
        "sounds": manifest_digest(data.sounds) if data.sounds else None,
        "packing": data.packing.model_dump(mode="json"),
        "seed": [recipe.seed, variant],
    }

    def windows() -> list[PackedWindow]:
        rng = np.random.default_rng([recipe.seed, variant, 99])
        clips: list[Clip] = []
        for source in data.train:
            with_text = [clip for clip in read_manifest(source.path) if clip.text]
            take = rng.permutation(len(with_text))[: round(len(with_text) * source.share)]
            clips += [with_text[i] for i in sorted(take)]
        sounds = read_manifest(data.sounds) if data.sounds else []
        return pack(clips, sounds, data.packing, (recipe.seed, variant))

    return _cached(data.cache, description, recipe.model.encoder, windows, progress)


def cache_validation_windows(recipe: Recipe, progress: Callable[[int, int], None] | None = None) -> CachedWindows:
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
        return [PackedWindow((_alone(clip),), None, None, (0,)) for clip in clips]

    return _cached(data.cache, description, recipe.model.encoder, windows, progress)


def _alone(clip: Clip) -> Placement:
    return Placement(clip, 0, min(round(clip.duration * SAMPLE_RATE), WINDOW_SAMPLES), 1.0, 0.0)


def _cached(
    root: Path,
    description: dict[str, object],
    encoder_name: str,
    windows: Callable[[], list[PackedWindow]],
    progress: Callable[[int, int], None] | None,
) -> CachedWindows:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / digest
    if not (folder / "description.json").is_file():
        root.mkdir(parents=True, exist_ok=True)
        # A second process that wants the same windows waits for the first.
        with FileLock(root / f"{digest}.lock"):
            if not (folder / "description.json").is_file():
                _encode(folder, description, load_encoder(encoder_name).eval(), windows(), progress)
    return CachedWindows(folder)


def _encode(
    folder: Path,
    description: dict[str, object],
    encoder: WhisperEncoder,
    windows: list[PackedWindow],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Encode windows into a folder beside the final one, going on where an earlier attempt was cut off."""
    config: WhisperConfig = encoder.config
    shape = (config.max_source_positions, config.d_model)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    file = partial / "frames.bf16"
    window_bytes = shape[0] * shape[1] * 2
    done = file.stat().st_size // window_bytes if file.exists() else 0
    try:
        with file.open("r+b" if file.exists() else "wb") as out, ThreadPoolExecutor(1) as reader:
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
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                    frames = encoder(features).last_hidden_state
                out.write(frames.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
                out.flush()
                done += len(batch)
                if progress is not None:
                    progress(done, len(windows))
    except OSError as error:
        raise TrainingError(
            f"{partial}: the encoder's features could not be written ({error.strerror}); "
            "free some room and start again, what is done is kept."
        ) from None
    with (partial / "labels.jsonl").open("w", encoding="utf-8") as labels:
        for window in windows:
            end = max((p.start + p.samples for p in window.placements), default=0)
            row = {
                "text": window.text,
                "frames": min(shape[0], -(-end // 320)),
                "clips": [p.clip.id for p in window.placements],
            }
            labels.write(json.dumps(row, ensure_ascii=False) + "\n")
    final = {**description, "frames": shape[0], "hidden_size": shape[1]}
    (partial / "description.json").write_text(json.dumps(final, indent=1))
    os.replace(partial, folder)
