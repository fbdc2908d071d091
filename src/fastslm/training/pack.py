"""Packing a run: everything that its phases open, in one folder for a machine without network, audio or caches."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from fastslm import __version__, weights
from fastslm.errors import CheckpointError, RecipeError, TrainingError
from fastslm.hub_weights import OTHER_FORMATS, SAFE_FORMAT
from fastslm.training.disk import writing
from fastslm.training.feature_cache import (
    ENCODE_BATCH,
    cache_training_windows,
    cache_validation_windows,
    check_recordings,
    training_features,
    validation_features,
)
from fastslm.training.instructions import check_instructions
from fastslm.training.packed import DESCRIPTION, LAYOUT, RECIPE, fingerprint, needs_original, packings_needed
from fastslm.training.processes import SIZES, Processes
from fastslm.training.progress import StepLine
from fastslm.training.recipe import Recipe
from fastslm.training.stages import model_config

TRAINED_PART = "model.safetensors"
LOCK = ".lock"


def pack_run(recipe: Recipe, folder: Path, quiet: bool = False) -> Path:
    """Write a run as a folder that `load_packed` reads, and return it. Nothing is trained.

    What is not encoded yet is encoded first, into the recipe's cache. The folder is found whole under its name, or not
    at all.

    Args:
        folder: must not exist, or be empty.
        quiet: nothing on standard error.

    Raises:
        RecipeError: `folder` holds something, several processes were started, or the recipe cannot be trained.
        WeightsError, CheckpointError, ManifestError: what the recipe names is not there or not right.
        TrainingError: the disk has no room, or another process packs there.
    """
    folder = Path(os.path.realpath(folder))
    line = StepLine(quiet)
    _check_place(folder)
    if any(int(os.environ.get(name, 1)) > 1 for name in SIZES):
        raise RecipeError("One process packs a run; start fastslm train RECIPE --pack FOLDER without a launcher.")
    device = _encoding_device(recipe.device)
    model_config(recipe)
    check_instructions(recipe)
    packing = _Packing(recipe)
    if packing.training:
        check_recordings(recipe)
    files = sum(source.stat().st_size for source, _ in packing.files)
    features, missing = packing.sizes()
    line.say(
        f"{folder} will take {_gigabytes(files + features)}: {_gigabytes(features)} of features, "
        f"{_gigabytes(files)} of weights and rows"
    )
    _check_room(folder, files + features, recipe.data.cache, missing)
    torch.set_num_threads(recipe.threads)
    encoded = packing.encode(line, device)
    parent = folder.parent
    with writing(folder, "the packed run"):
        parent.mkdir(parents=True, exist_ok=True)
        scratch = parent / f".{folder.name}.partial"
        scratch.mkdir(exist_ok=True)
    try:
        with FileLock(scratch / LOCK, timeout=0):
            try:
                _clear(scratch)
                with writing(folder, "the packed run"):
                    packing.write(scratch, encoded)
                    (scratch / LOCK).unlink()
                    os.replace(scratch, folder)
            finally:
                if scratch.exists():
                    shutil.rmtree(scratch, ignore_errors=True)
    except Timeout:
        raise TrainingError(f"{folder}: another process packs there; wait for it, or choose another folder.") from None
    line.say(f"packed; copy the folder to where it is to be trained, and start fastslm train {folder.name} there")
    return folder


@dataclass
class _Packing:
    """What of a recipe is packed: files with their places in the folder, and features."""

    recipe: Recipe

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.files: list[tuple[Path, str]] = []
        self.description: dict[str, Any] = {"layout": LAYOUT, "fastslm": __version__, "weights": {}}
        self.training = [training_features(recipe, variant) for variant in range(packings_needed(recipe))]
        self.validation = validation_features(recipe)
        self._add_weights()
        self.description["start_from"] = None
        if recipe.start_from is not None:
            if not (recipe.start_from / TRAINED_PART).is_file():
                raise CheckpointError(f"{recipe.start_from} holds no {TRAINED_PART}: give the folder of a saved model.")
            self.files.append((recipe.start_from / TRAINED_PART, f"start_from/{TRAINED_PART}"))
            self.description["start_from"] = "start_from"
        data = recipe.data
        self.description["instructions"] = [
            self._add_rows(share.path, f"{number}-{share.path.name}")
            for number, share in enumerate(data.instructions, start=1)
        ]
        self.description["instructions_validation"] = (
            None
            if data.instructions_validation is None
            else self._add_rows(data.instructions_validation, f"validation-{data.instructions_validation.name}")
        )

    def _add_rows(self, path: Path, name: str) -> str:
        self.files.append((path, f"instructions/{name}"))
        return f"instructions/{name}"

    def _add_weights(self) -> None:
        model = self.recipe.model
        names = [model.encoder, model.text_model, *([] if model.reader is None else [model.reader.base])]
        places: dict[str, str] = self.description["weights"]
        for name in dict.fromkeys(names):
            folder = weights.resolve(name)
            given = Path(os.path.expanduser(name))
            called = given.resolve().name if given.is_dir() else name
            place = f"weights/{_free(re.sub(r'[^A-Za-z0-9._-]+', '--', called) or 'base', places)}"
            self.files += [(file, f"{place}/{file.name}") for file in _weight_files(folder)]
            places[name] = place
        if needs_original(self.recipe):
            original = weights.original(model.encoder)
            place = f"{places[model.encoder]}-original"
            member = Path(weights.KNOWN[model.encoder].member)
            found = [file for file in original.rglob("*") if file.is_file()] if original.is_dir() else [original]
            self.files += [(file, f"{place}/{member}/{file.relative_to(original)}") for file in found]
            places[weights.original_name(model.encoder)] = place

    def sizes(self) -> tuple[int, int]:
        """Bytes of the features, and how many of these are not encoded yet."""
        sizes = [(features.size(), features.cached) for features in (*self.training, self.validation)]
        return sum(size for size, _ in sizes), sum(size for size, cached in sizes if not cached)

    def encode(self, line: StepLine, device: torch.device) -> list[Path]:
        """The cache's folders of all features, training's first."""

        def show(done: int, total: int) -> None:
            line.show("encoding", done, total, (total - done) // ENCODE_BATCH, {})

        for variant in range(len(self.training)):
            cache_training_windows(self.recipe, variant, show, device)
        cache_validation_windows(self.recipe, show, device)
        return [features.folder for features in (*self.training, self.validation)]

    def write(self, scratch: Path, encoded: list[Path]) -> None:
        """All files, and last what describes them."""
        copies = [*self.files, *((file, f"features/{f.name}/{file.name}") for f in encoded for file in _features(f))]
        described = {}
        for source, place in copies:
            (scratch / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, scratch / place)
            described[place] = fingerprint(scratch / place)
        # Without defaults: a recipe may not say what does nothing.
        content = self.recipe.model_dump(mode="json", exclude_unset=True)
        head = f"# fastslm train FOLDER\n#\n# What {DESCRIPTION} says is found in this folder, not under these names.\n"
        text = head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (scratch / RECIPE).write_text(text, encoding="utf-8")
        described[RECIPE] = fingerprint(scratch / RECIPE)
        places = [f"features/{folder.name}" for folder in encoded]
        self.description["features"] = {"training": places[:-1], "validation": places[-1]}
        self.description["files"] = dict(sorted(described.items()))
        (scratch / DESCRIPTION).write_text(json.dumps(self.description, indent=1) + "\n", encoding="utf-8")


def _features(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if file.is_file())


def _weight_files(folder: Path) -> list[Path]:
    """What transformers reads of a folder; the same weights in other formats are left out beside safetensors."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if any(file.name.endswith(SAFE_FORMAT) for file in files):
        files = [file for file in files if not file.name.endswith(OTHER_FORMATS)]
    return files


def _free(name: str, places: dict[str, str]) -> str:
    """A name that no other weights have: two folders may be called alike."""
    taken = {place.removeprefix("weights/") for place in places.values()}
    number = 1
    while (free := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return free


def _check_place(folder: Path) -> None:
    if folder.is_file():
        raise RecipeError(f"--pack: {folder} is a file; name a new folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise RecipeError(f"--pack: {folder} is not empty; name a new folder, or remove this one.")


def _check_room(folder: Path, size: int, cache: Path, missing: int) -> None:
    """Make sure that the pack, and what is encoded into the cache for it, fit.

    Raises:
        TrainingError: they do not.
    """
    needed: dict[int, tuple[Path, int]] = {}
    for place, bytes_ in ((folder, size), (cache, missing)):
        there = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.is_dir())
        device = there.stat().st_dev
        needed[device] = (needed.get(device, (there, 0))[0], needed.get(device, (there, 0))[1] + bytes_)
    for there, bytes_ in needed.values():
        if (free := shutil.disk_usage(there).free) < bytes_:
            raise TrainingError(
                f"Packing needs {_gigabytes(bytes_)} on the disk of {there}, which has {_gigabytes(free)} free; free "
                "some room, or choose a folder on another disk."
            )


def _clear(scratch: Path) -> None:
    """Remove what a killed process left."""
    for left in scratch.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != LOCK:
            left.unlink()


def _encoding_device(name: str) -> torch.device:
    """The recipe's device, or this machine's own where the recipe's is that of the machine to come.

    Raises:
        RecipeError: no machine has such a device.
    """
    try:
        return Processes(name).device
    except RecipeError:
        if not name.startswith("cuda"):
            raise
        return Processes("auto").device


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
