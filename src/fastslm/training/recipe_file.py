"""Recipes from YAML files: included, overridden, checked at once; every fault in a sentence of its own."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml

from fastslm.errors import RecipeError
from fastslm.training.recipe import Recipe, Section

# How keys of recipes are written.
KEY = re.compile(r"[a-z_0-9]*")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), look_for_files: bool = True) -> Recipe:
    """Read a YAML recipe, apply `--set a.b=c` overrides, and check everything at once.

    Args:
        overrides: each `dotted.key=value`, the value in YAML; `data.train.0.path=…` reaches into lists.
        look_for_files: whether manifests, corpora and `start_from` must be there.

    Raises:
        RecipeError: with every fault that was found; an unknown key is named beside the nearest known one.
    """
    recipe = validate_recipe(recipe_content(path, overrides), str(path))
    if look_for_files:
        require_files(recipe, str(path))
    return recipe


def recipe_content(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a recipe says, with what it includes beneath it and overrides above it, before any of it is checked.

    Raises:
        RecipeError: there is no such file, it is no mapping, or an override has no place in it.
    """
    content = _included(Path(path), ())
    for override in overrides:
        _override(content, override)
    return content


def _included(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such recipe; give a YAML file such as recipes/tiny/stage1.yaml.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: this is not YAML ({str(error).splitlines()[0]}); correct the file.") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values; see recipes/tiny/stage1.yaml.")
    beneath = content.pop("include", None)
    if beneath is None:
        return content
    if path.resolve() in seen or not isinstance(beneath, str) or not beneath:
        raise RecipeError(f"{path}: include is {beneath!r}; name another YAML file, which must not include this one.")
    return _merged(_included(path.parent / beneath, (*seen, path.resolve())), content)


def _merged(beneath: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced."""
    found = dict(beneath)
    for key, value in above.items():
        known = found.get(key)
        found[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return found


def require_files(recipe: Recipe, where: str) -> None:
    """Make sure that the files and folders that a recipe names are there.

    Raises:
        RecipeError: with all that are not.
    """
    data = recipe.data
    wanted = [source.place for source in (*data.train, *((data.validation,) if data.validation else ()))]
    wanted += [data.sounds] if data.sounds is not None else []
    missing = [str(place) for place in wanted if not place.exists()]
    faults = [f"missing manifests or corpora: {', '.join(missing)}; correct the paths or make them"] if missing else []
    if recipe.start_from is not None and not recipe.start_from.is_dir():
        faults.append(f"start_from {recipe.start_from} is no folder; train the stage before it first")
    if faults:
        raise RecipeError(f"{where}: {'; '.join(faults)}.")


def validate_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's content alone: nothing on the disk is looked for.

    Raises:
        RecipeError: with every fault that was found, in one sentence each.
    """
    try:
        return Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(map(_sentence, _own_faults(error))) + ".") from None


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: write key.subkey=value, for instance --set seed=2.")
    node: Any = content
    *parents, last = key.split(".")
    for part in parents:
        try:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        except (ValueError, IndexError, AttributeError):
            raise RecipeError(f"--set {override!r}: the recipe has no {part!r} there to set a value in.") from None
    try:
        if isinstance(node, list):
            node[int(last)] = yaml.safe_load(value)
        else:
            node[last] = yaml.safe_load(value)
    except (ValueError, IndexError, TypeError, yaml.YAMLError):
        raise RecipeError(f"--set {override!r}: this value cannot be set there; see the recipe's layout.") from None


def _own_faults(error: pydantic.ValidationError) -> list[Any]:
    """Pydantic's faults, but for two that it adds: a list with faulty items is called too short, and each way that a
    rate can be written has a fault of its own."""
    faults = error.errors()
    inside = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
    own = [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside]
    found: dict[tuple[Any, ...], Any] = {}
    for fault in own:
        found.setdefault(_place(fault), fault)
    return list(found.values())


def _place(fault: Any) -> tuple[Any, ...]:
    """A fault's place in the recipe, without pydantic's names of the ways that a value can be written."""
    *parents, last = fault["loc"] or ("",)
    own = [part for part in parents if isinstance(part, int) or KEY.fullmatch(part)]
    unknown = fault["type"] == "extra_forbidden"
    return (*own, last) if unknown or isinstance(last, int) or KEY.fullmatch(last) else tuple(own)


def _sentence(fault: Any) -> str:
    """One fault of pydantic's, in our words; an unknown key with the nearest known one."""
    place = _place(fault)
    where = ".".join(str(part) for part in place)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known there: {', '.join(known)}"
        return f"unknown key {where} ({hint})"
    if fault["type"] == "missing":
        return f"the key {where} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], dict):
        return f"{where}: {message}" if where else message
    return f"{where} is {fault['input']!r}: {message[0].lower() + message[1:]}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys that a place in a recipe knows."""
    model: Any = Recipe
    for part in location:
        if not isinstance(part, int):
            model = next(found for found in _annotated(model.model_fields[part].annotation))
    return list(model.model_fields)


def _annotated(annotation: Any) -> list[Any]:
    """The sections among what a key may hold."""
    inner = [found for part in get_args(annotation) for found in _annotated(part)]
    return [annotation, *inner] if isinstance(annotation, type) and issubclass(annotation, Section) else inner
