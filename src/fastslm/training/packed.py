"""A packed run: one folder with all that a run opens, trained where there is no network, no audio and no cache.

    recipe.yaml         as it was given at home, overrides applied; its names mean what they meant there
    pack.json           where in this folder the named things lie, and the sizes and digests of all files
    features/           the encoder's frames of training and validation windows, as the cache has them
    instructions/       manifests of tasks with their answers
    weights/            base weights
    start_from/         the trained part that the run starts from

Whatever the phases do not use is not there. `fastslm.training.pack` writes it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastslm.errors import RecipeError
from fastslm.training.feature_cache import CachedWindows
from fastslm.training.recipe import Recipe, recipe_content, validate_recipe
from fastslm.weights import original_name

DESCRIPTION = "pack.json"
RECIPE = "recipe.yaml"
LAYOUT = 1
# Smaller files are read whole when a pack is checked; of larger ones, so many pieces that lie evenly, ends included.
READ_WHOLE = 16 * 2**20
PIECES, PIECE = 16, 2**16


@dataclass(frozen=True)
class Packed:
    """A packed run that is whole.

    Attributes:
        folder: of the pack.
        home: the recipe with the names that it had at home, overrides applied.
        recipe: the same, with the files of this folder in place of those that a run opens by its recipe.
        weights: folders of base weights, by the recipe's names.
        training: folders of the training windows' frames, one a packing; none where no phase hears.
        validation: that of validation clips.
    """

    folder: Path
    home: Recipe
    recipe: Recipe
    weights: Mapping[str, Path]
    training: tuple[Path, ...]
    validation: Path

    def training_windows(self, variant: int) -> CachedWindows:
        """The windows of one packing."""
        return CachedWindows(self.training[variant])

    def validation_windows(self) -> CachedWindows:
        """Validation clips, each alone in a window."""
        return CachedWindows(self.validation)


def load_packed(folder: Path, overrides: Sequence[str] = ()) -> Packed:
    """A packed run, after a look at all of its files.

    Args:
        overrides: as of `load_recipe`; of what was packed by the recipe, nothing can be changed.

    Raises:
        RecipeError: the folder holds no packed run, one that lost a file or was changed, or one that has not what an
            override asks for.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        layout, files = description["layout"], description["files"]
    except FileNotFoundError:
        raise RecipeError(
            f"{folder}: this folder holds no packed run (it has no {DESCRIPTION}); give a recipe, or a folder that "
            "fastslm train RECIPE --pack FOLDER made."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{folder / DESCRIPTION} is damaged ({error}); copy the pack again.") from None
    if layout != LAYOUT:
        raise RecipeError(
            f"{folder} was packed by another version of fastslm (layout {layout}, and this one reads {LAYOUT}); pack "
            "the run again."
        )
    for name, expected in files.items():
        _check_file(folder, name, expected)
    where = f"{folder / RECIPE}"
    packed = validate_recipe(recipe_content(folder / RECIPE), where)
    content = recipe_content(folder / RECIPE, list(overrides))
    if not any(override.partition("=")[0] == "out" for override in overrides):
        content["out"] = str(folder / "run")
    home = validate_recipe(content, where)
    features = description["features"]
    training = tuple(folder / name for name in features["training"])
    _refuse_what_is_not_there(packed, home, len(training), description)
    return Packed(
        folder=folder,
        home=home,
        recipe=_with_files(home, folder, description),
        weights={name: folder / place for name, place in description["weights"].items()},
        training=training,
        validation=folder / features["validation"],
    )


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and digest of a file: the SHA-256 of a small file's content, of a large one that of pieces of it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= READ_WHOLE:
            return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        digest = hashlib.sha256()
        for piece in range(PIECES):
            file.seek((size - PIECE) * piece // (PIECES - 1))
            digest.update(file.read(PIECE))
    return {"bytes": size, "sha256_of_pieces": digest.hexdigest()}


def packings_needed(recipe: Recipe) -> int:
    """How many packings of the training data a run opens."""
    if any(phase.objective != "instructions" for phase in recipe.phases):
        return recipe.data.variants
    # The least-squares start looks at the first.
    return 1 if recipe.model.reader is not None and recipe.model.reader.start_windows else 0


def needs_original(recipe: Recipe) -> bool:
    """Whether a run aligns characters in time, for which CTranslate2 reads the encoder's weights as published."""
    return any(phase.objective == "alignment" for phase in recipe.phases)


def _check_file(folder: Path, name: str, expected: dict[str, Any]) -> None:
    again = f"copy the pack again, {DESCRIPTION} says what belongs to it."
    try:
        found = fingerprint(folder / name)
    except OSError as error:
        raise RecipeError(f"{folder}: the packed run lost {name} ({error.strerror}); {again}") from None
    if found["bytes"] != expected["bytes"]:
        raise RecipeError(
            f"{folder}: {name} has {found['bytes']} bytes, but was packed with {expected['bytes']}; {again}"
        )
    if found != expected:
        change = "set values with --set, or pack the run anew." if name == RECIPE else again
        raise RecipeError(f"{folder}: {name} was changed since it was packed; {change}")


def _refuse_what_is_not_there(packed: Recipe, wanted: Recipe, training: int, description: dict[str, Any]) -> None:
    before, now = _packed_by(packed, training), _packed_by(wanted, training)
    changed = [key for key in before if before[key] != now[key]]
    there = "give the same --set to fastslm train RECIPE --pack FOLDER."
    if changed:
        raise RecipeError(f"--set: {changed[0]} decides what is packed, so a packed run keeps it; {there}")
    if packings_needed(wanted) > training:
        raise RecipeError(f"--set: the run now hears training windows, which were not packed; {there}")
    if needs_original(wanted) and original_name(wanted.model.encoder) not in description["weights"]:
        raise RecipeError(f"--set: the run now aligns characters, with weights that were not packed; {there}")


def _packed_by(recipe: Recipe, training: int) -> dict[str, Any]:
    """What of a recipe decides what is in its pack."""
    model = recipe.model
    data = recipe.data.model_dump(mode="json", exclude={"cache"})
    found = {f"data.{key}": value for key, value in data.items()}
    found |= {"model.encoder": model.encoder, "model.text_model": model.text_model, "start_from": recipe.start_from}
    found["model.reader.base"] = None if model.reader is None else model.reader.base
    return found | ({"seed": recipe.seed} if training else {})


def _with_files(home: Recipe, folder: Path, description: dict[str, Any]) -> Recipe:
    shares = zip(home.data.instructions, description["instructions"], strict=True)
    validation, start = description["instructions_validation"], description["start_from"]
    data = home.data.model_copy(
        update={
            "instructions": tuple(share.model_copy(update={"path": folder / place}) for share, place in shares),
            "instructions_validation": None if validation is None else folder / validation,
        }
    )
    return home.model_copy(update={"data": data, "start_from": None if start is None else folder / start})
