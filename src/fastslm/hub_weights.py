"""Base weights from the Hugging Face Hub: the whole repository at once, so that a later start reaches no network."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from fastslm.errors import WeightsError
from fastslm.wheel_download import megabytes

SAFE_FORMAT = ".safetensors"
# The same weights in other formats, which are left out where safetensors are there.
OTHER_FORMATS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".tflite", ".ot")


def fetch_from_hub(
    name: str, markers: Path, *, allow_fetch: bool, progress: Callable[[str], None], without_weights: bool = False
) -> Path:
    """The folder of the Hub's repository `name` (`owner/name`) in the cache of huggingface_hub.

    huggingface_hub downloads, resumes and locks. `markers` is a folder of notes on what was fetched whole: with one, no
    network is reached, where huggingface_hub itself would ask whether there is something newer. With
    `without_weights`, only what describes a model is fetched: its configuration and tokenizer.

    Raises:
        WeightsError: not on the Hub, not public, no network, or offline and not in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import constants as hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # the HTTP client's, which each major release changes  # pyright: ignore[reportPrivateImportUsage]
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    whole = marker = markers / f"{name.replace('/', '--')}.json"
    if without_weights:
        marker = marker.with_suffix(".description.json")
    if (folder := _marked(whole) or _marked(marker)) is not None:
        return folder
    if not allow_fetch or hub.HF_HUB_OFFLINE:
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            raise WeightsError(
                f"{name} is not in the cache of the Hugging Face Hub and fetching is not allowed: go online once, or "
                "give a folder."
            ) from None
    try:
        files = {
            file.rfilename: file.size or 0 for file in HfApi().model_info(name, files_metadata=True).siblings or []
        }
        ignore: list[str] = []
        if without_weights:
            ignore = [file for file in files if file.endswith((SAFE_FORMAT, *OTHER_FORMATS))]
        elif any(file.endswith(SAFE_FORMAT) for file in files):
            ignore = [file for file in files if file.endswith(OTHER_FORMATS)]
        wanted = {file: size for file, size in files.items() if file not in ignore}
        progress(f"Fetching {name} ({megabytes(sum(wanted.values()))}) from the Hugging Face Hub.")
        folder = Path(snapshot_download(name, ignore_patterns=ignore))
    except GatedRepoError as error:
        raise WeightsError(
            f"{name} is gated on the Hugging Face Hub: accept its terms there and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"There is no {name} on the Hugging Face Hub, or it is private: check the name, or log in with "
            "`hf auth login`."
        ) from error
    except HFValidationError as error:
        raise WeightsError(f"{name!r} is not a Hub id: {error}.") from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise WeightsError(
            f"{name} could not be fetched from the Hugging Face Hub: {reason}; check the network and run again, or "
            "give a folder."
        ) from error
    _mark(marker, folder, wanted)
    return folder


def _marked(marker: Path) -> Path | None:
    try:
        noted = json.loads(marker.read_text(encoding="utf-8"))
        folder = Path(noted["folder"])
        whole = all((folder / file).stat().st_size == size for file, size in noted["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # never fetched, or removed since: the Hub is asked again
    return folder if whole else None


def _mark(marker: Path, folder: Path, files: dict[str, int]) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    beside = marker.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps({"folder": str(folder), "files": files}, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, marker)
