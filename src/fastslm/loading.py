"""`fastslm.load`: a name, a folder or a Hub id → a model that is ready to hear."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fastslm.errors import CheckpointError, OptionError
from fastslm.longform.encoder import fast_dtype
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.products import PRODUCTS_REASON, best_kernels
from fastslm.speech import FastSLM
from fastslm.weights import HUB_ID, resolve
from fastslm.writing import utf8_path

# transformers sets process-wide defaults while it loads: one thread at a time.
_LOADING = threading.RLock()
DEFAULT_MODEL = "fastslm-tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | os.PathLike = DEFAULT_MODEL,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    quiet: bool = False,
) -> FastSLM:
    """A FastSLM, in evaluation mode.

    What `auto` chose is said once on standard error.

    Args:
        name: a model that comes with fastslm (`fastslm-tiny`), the folder of a checkpoint in either form, or
            `owner/name` on the Hugging Face Hub. Base weights that are not cached are fetched.
        device: as torch has it; `auto` is CUDA where there is some, else the CPU.
        dtype: `float32`, `bfloat16` or `float16`, of everything; `auto` is bfloat16 on a CUDA device that has it, on
            the CPU float32, with encoder, HFQ-Former and Whisper's decoder in bfloat16 where the processor multiplies
            it. On one without AMX, bfloat16 is computed by matrix products (`fastslm.model.products`).
        quiet: say nothing of what was chosen.

    Raises:
        CheckpointError: there is no such model, or it is damaged or does not fit its base weights.
        WeightsError: base weights cannot be found or fetched.
        OptionError: a device that is not there, or an unknown dtype.
    """
    with _LOADING:
        return _load(name, device, dtype, quiet)


def _load(name: str | os.PathLike, device: str | torch.device, dtype: str | torch.dtype, quiet: bool) -> FastSLM:
    chosen_device, device_reason = choose_device(device)
    chosen_dtype, dtype_reason = choose_dtype(dtype, chosen_device)
    folder = checkpoint_folder(name)
    with utf8_path(folder) as readable, _quiet_transformers():
        folder = Path(readable)
        config = _config(folder, os.fspath(name))
        processor = _processor(folder, config)
        try:
            model = FastSLMForConditionalGeneration.from_pretrained(folder, config=config, dtype=chosen_dtype)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"The weights of {name} in {folder} cannot be read ({_first_line(error)}): fetch or save them again."
            ) from error
    model.merge_decoder_lora().to(chosen_device)
    encoder_dtype, encoder_reason = choose_encoder_dtype(dtype, chosen_device)
    computing = encoder_dtype or chosen_dtype
    kernels = best_kernels(chosen_device, computing)
    if kernels == "products":
        encoder_reason += f"; {PRODUCTS_REASON}"
    if model.whisper_decoder is not None and (encoder_dtype is not None or kernels == "products"):
        model.whisper_decoder.read_in(computing, kernels)
    if not quiet and (device_reason or dtype_reason):
        chosen = f"{chosen_device}{device_reason}, {str(chosen_dtype).removeprefix('torch.')}{dtype_reason}"
        if encoder_dtype is not None:
            own = "Whisper's parts" if model.whisper_decoder is not None else "the encoder"
            chosen += f", {own} in {str(encoder_dtype).removeprefix('torch.')} ({encoder_reason})"
        print(f"fastslm: {os.fspath(name)} runs on {chosen}.", file=sys.stderr)
    return FastSLM(model, processor, name=os.fspath(name), encoder_dtype=encoder_dtype, kernels=kernels)


def unloaded(name: str | os.PathLike = DEFAULT_MODEL) -> FastSLMForConditionalGeneration:
    """A model without its weights, on the meta device: what options are checked against before anything slow.

    Raises:
        CheckpointError: there is no such model. WeightsError: it cannot be fetched.
    """
    config = _config(checkpoint_folder(name), os.fspath(name))
    with torch.device("meta"):
        return FastSLMForConditionalGeneration(config)


def bundled_models() -> dict[str, Path]:
    """Models that come with fastslm and their folders: in the installed package, or in the checkout it runs from."""
    package = Path(str(files("fastslm")))
    found: dict[str, Path] = {}
    for shelf in (package / "checkpoints", package.parents[1] / "checkpoints"):
        for config in sorted(shelf.glob("*/config.json")):
            found.setdefault(config.parent.name, config.parent)
    return found


def checkpoint_folder(name: str | os.PathLike) -> Path:
    """The folder of a model's checkpoint, fetched first if it lies on the Hub.

    Raises:
        CheckpointError: there is no such model; the nearest known name is given.
        WeightsError: it cannot be fetched.
    """
    text, path = os.fspath(name), Path(os.path.expanduser(name))
    if text and path.is_dir():  # an empty name is no folder, though its path is the one where we are
        return path
    if path.is_file():
        raise CheckpointError(f"{text} is a file, where a model's folder is needed: name the folder that holds it.")
    known = bundled_models()
    if text in known:
        return known[text]
    if HUB_ID.fullmatch(text):
        return resolve(text)
    if text == DEFAULT_MODEL:
        raise CheckpointError(
            f"{text} is not part of this installation (no checkpoints/{text} was found): name the folder of a model."
        )
    near = get_close_matches(text.lower(), {*known, DEFAULT_MODEL}, n=1, cutoff=0.4)
    hint = f", did you mean {near[0]!r}" if near else ""
    raise CheckpointError(
        f"There is no model {text!r}{hint}: give {DEFAULT_MODEL}, the folder of a checkpoint, or owner/name on the "
        "Hugging Face Hub."
    )


def _config(folder: Path, name: str) -> FastSLMConfig:
    file = folder / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no config.json: give the folder of a saved FastSLM.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}): fetch or save the model again.") from error
    if kind != FastSLMConfig.model_type:
        raise CheckpointError(
            f"{name} is a model of type {kind!r}, {FastSLMConfig.model_type!r} is needed: give a FastSLM, such as "
            f"{DEFAULT_MODEL}."
        )
    try:
        return FastSLMConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} does not describe a FastSLM ({_first_line(error)}): correct it.") from error


def _processor(folder: Path, config: FastSLMConfig) -> FastSLMProcessor:
    layout = {
        "tokens_per_window": config.tokens_per_window,
        "mel_mode": config.mel_mode,
        "prompt_layout": config.prompt_layout,
    }
    if not (folder / "processor_config.json").is_file():
        if config.base_encoder is None or config.base_text_model is None:
            raise CheckpointError(
                f"{folder} holds no processor_config.json and its configuration names no base weights to take one "
                "from: save the processor there, too."
            )
        return FastSLMProcessor.from_base(config.base_encoder, config.base_text_model, **layout)
    processor: Any = FastSLMProcessor.from_pretrained(folder)
    for key, value in {**layout, "audio_token_id": config.audio_token_id}.items():
        if getattr(processor, key) != value:
            raise CheckpointError(
                f"{folder}: the processor has {key} {getattr(processor, key)!r} and the model {value!r}: use files "
                "that were saved together."
            )
    return processor


def choose_device(device: str | torch.device) -> tuple[torch.device, str]:
    """The device, and why, where it was left open."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f" ({torch.cuda.get_device_name()})"
        return torch.device("cpu"), " (no CUDA device was found)"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"The device {str(device)!r} cannot be used ({_first_line(error)}): give auto, cpu or a device that this "
            "torch has."
        ) from error
    return chosen, ""


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype, and why, where it was left open."""
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32, " (what published figures are measured in)"
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, " (the device has it)"
        return torch.float32, " (the device has no bfloat16)"
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"There is no dtype {name!r}: choose auto or one of {', '.join(DTYPES)}.")
    return DTYPES[name], ""


def choose_encoder_dtype(dtype: str | torch.dtype, device: torch.device) -> tuple[torch.dtype | None, str]:
    """What encoder and HFQ-Former compute in, `None` for the model's own, and why; a named dtype is kept to."""
    return fast_dtype(device) if dtype == "auto" else (None, "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the bars of transformers, one for each base model."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
