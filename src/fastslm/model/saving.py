"""Checkpoints in two forms: all weights, as transformers has it, and the trained part alone, completed from the base.

    everything      model.safetensors (or shards), whisper_decoder/ with that decoder's tokenizer; no base is named
    trained part    model.safetensors with HFQ-Former, projector, CTC head, unfolder, LoRA; config.json names the base

`from_pretrained` tells them apart by the configuration. The first form needs nothing but its folder. A missing,
unexpected or ill-shaped tensor is always an error. LoRA is stored under PEFT's names (`fastslm.model.lora`). An adapter
that a user put on top, with PEFT or `add_adapter`, is a checkpoint of its own, saved and loaded as PEFT and
transformers have it.
"""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from fastslm.errors import CheckpointError
from fastslm.model.adapters import adapted_parts, model_beneath, weight_sample
from fastslm.model.base_weights import (
    check_base,
    check_decoder,
    grow_embeddings,
    is_tied,
    load_decoder,
    load_encoder,
    load_text_model,
    refuse_differences,
)
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.lora import STORED_NAMES, is_lora_key, key_in_memory, stored_key, stored_state
from fastslm.model.whisper_decoder import DECODER_FILES
from fastslm.prompts import AUDIO_TOKEN
from fastslm.weights import resolve

# Rows that the base's embedding lacks, since the tokenizer outgrew it; the output's only where it is not tied.
ADDED_INPUT_ROWS = "added_embeddings.input"
ADDED_OUTPUT_ROWS = "added_embeddings.output"
# Always in float32, see `FastSLMForConditionalGeneration`.
UNFOLDER = "reader.unfold"
# Keys of the configuration that name base weights.
BASES = ("base_encoder", "base_text_model", "base_decoder")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# What transformers' Auto classes pass along, and what says nothing to files that are safetensors and ours.
VOID_ARGUMENTS = ("trust_remote_code", "_from_auto", "low_cpu_mem_usage", "use_safetensors")
TEXT_MODEL_ARGUMENTS = ("attn_implementation", "quantization_config")


class FastSLMPreTrainedModel(PreTrainedModel):
    """Loading and saving of the model, in both forms."""

    config_class = FastSLMConfig
    config: FastSLMConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Either form, from a folder or the Hub, in evaluation mode. Arguments are transformers'.

        The folder of an adapter gives the model that it was made for, with the adapter on top.

        Of the trained part, `dtype` (default: the configuration's) and a single device in `device_map` are understood
        beside the Hub's arguments, `attn_implementation` and `quantization_config` (of the language model).

        Raises:
            CheckpointError: weights are missing, unexpected, or of another size than the configuration says.
            WeightsError: the base weights cannot be found or fetched.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        given, adapter = model_beneath(pretrained_model_name_or_path, hub, kwargs.pop("adapter_kwargs", None) or {})
        adapter_name = kwargs.pop("adapter_name", None)
        loaded = cls._from_either(given, hub, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if adapter is not None and not model._hf_peft_config_loaded:
            model.load_adapter(os.fspath(adapter), adapter_name)
        return loaded

    @classmethod
    def _from_either(cls, given: Any, hub: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The checkpoint of that name in whichever form it has."""
        name = "the given state dict" if given is None else os.fspath(given)
        config = kwargs.get("config")
        if not isinstance(config, FastSLMConfig):
            config = FastSLMConfig.from_pretrained(name if config is None else config, **hub)
        if config.base_encoder is not None or config.base_text_model is not None:
            return cls._from_trained(name, config, hub, **_without(kwargs, {"config", *hub, *VOID_ARGUMENTS}))
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["key_mapping"] = {**STORED_NAMES, **(kwargs.get("key_mapping") or {})}
        try:
            loaded: Any = super().from_pretrained(given, *args, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            if "mismatch" not in str(error):
                raise
            raise CheckpointError(
                f"The weights in {name} have other sizes than its configuration says: use the config.json that was "
                "saved with them."
            ) from error
        model, info = loaded
        refuse_differences(
            name, {stored_key(key) for key in info["missing_keys"]}, info["unexpected_keys"], info["mismatched_keys"]
        )
        # Else transformers' saving would turn the names around by itself, and less exactly than ours does.
        model._weight_conversions = [x for x in model._weight_conversions if x.source_patterns[0] not in STORED_NAMES]
        if model.whisper_decoder is not None and config.base_decoder is None:
            model.whisper_decoder.files = _files_beside(name, hub)
        # transformers gives every parameter that it loads a gradient.
        model.freeze_base()
        return (model, info) if wants_info else model

    @classmethod
    def from_base(
        cls,
        base_encoder: str | os.PathLike,
        base_text_model: str | os.PathLike,
        *,
        tokenizer: Any = None,
        dtype: torch.dtype = torch.float32,
        hfq_config: dict[str, Any] | None = None,
        **config: Any,
    ) -> Self:
        """A new model: base weights, and parts of our own that start as the configuration says.

        The starts are drawn from torch's global generator: seed it for the same model.

        Args:
            base_encoder, base_text_model: names that `fastslm.weights.resolve` knows, folders, or Hub ids. They are
                kept in the configuration, for the trained part to be completed from.
            tokenizer: with FastSLM's tokens; the embedding grows if it has more ids than rows, by the mean row.
            dtype: of everything.
            hfq_config: what differs from `HFQFormerConfig`'s defaults; the width is the encoder's.
            config: further arguments of `FastSLMConfig`.

        Raises:
            WeightsError: the base weights cannot be found or fetched.
        """
        audio_config: Any = AutoConfig.from_pretrained(resolve(base_encoder))
        text_config: Any = AutoConfig.from_pretrained(resolve(base_text_model))
        sizes = {"hidden_size": audio_config.d_model, "window_frames": audio_config.max_source_positions}
        if tokenizer is not None:
            config.setdefault("audio_token_id", tokenizer.convert_tokens_to_ids(AUDIO_TOKEN))
            text = text_config.get_text_config()
            config["added_embeddings"] = max(0, len(tokenizer) - text.vocab_size)
            text.vocab_size += config["added_embeddings"]
        whole = FastSLMConfig(
            audio_config=audio_config,
            hfq_config={**sizes, **(hfq_config or {})},
            text_config=text_config,
            base_encoder=os.fspath(base_encoder),
            base_text_model=os.fspath(base_text_model),
            **config,
        )
        model = cls._on_base(whole, dtype)
        for part in model.trained_parts():
            part.to(dtype)
        return model.eval()

    @classmethod
    def _on_base(cls, config: FastSLMConfig, dtype: torch.dtype, on_meta: bool = False, **kwargs: Any) -> Any:
        """The model with base weights; its own parts are new, or on the meta device where weights are to follow."""
        if config.base_encoder is None or config.base_text_model is None:
            raise CheckpointError(
                "The configuration names only one of base_encoder and base_text_model; the trained part needs both: "
                "add the other to config.json."
            )
        encoder = load_encoder(config.base_encoder, dtype)
        text_model = load_text_model(config.base_text_model, dtype, **kwargs)
        check_base(config, encoder, text_model)
        grow_embeddings(text_model, config.added_embeddings)
        config.text_config = text_model.config
        decoder = None
        if config.whisper_decoder:
            if config.base_decoder is None:
                raise CheckpointError(
                    "The configuration has a whisper_decoder and names no base_decoder to complete it from: add the "
                    "name to config.json."
                )
            decoder = load_decoder(config.base_decoder, dtype)
            check_decoder(config, decoder)
        with torch.device("meta") if on_meta else nullcontext():
            model: Any = cls(config, encoder=encoder, language_model=text_model, decoder=decoder)  # type: ignore
        model.generation_config = deepcopy(text_model.generation_config)
        model.write_no_placeholders()
        model._loaded_weights = model._base_weights()
        return model

    @classmethod
    def _from_trained(
        cls,
        name: str,
        config: FastSLMConfig,
        hub: dict[str, Any],
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        torch_dtype: torch.dtype | str | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        if unknown := sorted(set(kwargs) - set(TEXT_MODEL_ARGUMENTS)):
            raise TypeError(
                f"A checkpoint of the trained part does not understand {', '.join(unknown)}: load it, save it whole "
                "with save_pretrained, and load that."
            )
        device = _single_device(device_map)
        dtype = _dtype(torch_dtype if dtype is None else dtype, config)
        state = _read_weights(name, hub)
        model = cls._on_base(config, dtype, on_meta=True, **kwargs)
        _load_trained(model, state, dtype, name)
        model.name_or_path = name  # what an adapter says that it was made for
        model.eval()
        if device is not None:
            model.to(device)
        if output_loading_info:
            return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """All weights, as transformers saves them. Nothing half-written is ever found under the folder's name.

        With an adapter of `add_adapter`'s, that adapter alone, as transformers has it.

        Raises:
            CheckpointError: PEFT's `get_peft_model` put an adapter on top, which is to be saved there or merged first.
        """
        if not self._hf_peft_config_loaded:
            self._refuse_adapters()
            state = kwargs.get("state_dict")
            kwargs["state_dict"] = stored_state(self.state_dict() if state is None else state)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        named = {key: getattr(self.config, key) for key in BASES}
        vars(self.config).update(dict.fromkeys(BASES))
        try:
            with written_beside(save_directory) as folder:
                decoder: Any = getattr(self, "whisper_decoder", None)
                if decoder is not None:
                    decoder.save_files(folder)
                super().save_pretrained(folder, *args, **kwargs)
        finally:
            vars(self.config).update(named)

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        """transformers pushes the files that are newer than these: all, for the folder was made a moment ago."""
        return {}

    def save_trained(self, save_directory: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """HFQ-Former, projector, CTC head, unfolder and LoRA alone, with a configuration that names the base weights.

        Args:
            dtype: of the file; by default the parameters' own. The model loads in the dtype that it has now.

        Raises:
            CheckpointError: the configuration names no base weights, LoRA or an adapter was merged into them, or there
                is an adapter on top.
        """
        self._refuse_adapters()
        if self.config.base_encoder is None or self.config.base_text_model is None:
            raise CheckpointError(
                "The configuration names no base weights, which the trained part is completed from: set "
                "config.base_encoder and config.base_text_model, or save everything with save_pretrained."
            )
        loaded, now = getattr(self, "_loaded_weights", ()), self._base_weights()
        # In another dtype, or shared out among processes, they cannot be compared.
        if (loaded[:1], len(loaded)) == (now[:1], len(now)) and loaded != now:
            raise CheckpointError(
                f"The language model's own weights are no longer those of {self.config.base_text_model}, so the "
                "trained part alone would lose what was merged into them: save everything with save_pretrained."
            )
        decoder: Any = getattr(self, "whisper_decoder", None)
        if decoder is not None and decoder.is_merged:
            raise CheckpointError(
                "LoRA of Whisper's decoder was merged into it, so it can no longer be saved apart: use from_pretrained "
                "instead of fastslm.load, or save everything with save_pretrained."
            )
        state = stored_state(self.trained_state_dict())
        state = {key: _as(value, dtype).contiguous() for key, value in state.items()}
        self.config.architectures = [type(self).__name__]
        self.config.dtype = str(next(self.get_submodule("hfq_former").parameters()).dtype).removeprefix("torch.")
        with written_beside(save_directory) as folder:
            self.config.save_pretrained(folder)
            self.generation_config.save_pretrained(folder)  # type: ignore[union-attr]
            save_file(state, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})

    def _base_weights(self) -> tuple[object, ...]:
        """What is seen of the language model's own weights, which neither training nor the checkpoint changes."""
        text_model: Any = self.get_submodule("language_model")
        ends = text_model.get_input_embeddings(), text_model.get_output_embeddings()
        grown = {end.weight for end in ends if end is not None}
        own = [p for name, p in text_model.named_parameters() if not is_lora_key(name) and p not in grown]
        return own[0].dtype, *weight_sample(own)

    def _refuse_adapters(self) -> None:
        """Raise where PEFT wraps parts of the model: a checkpoint of ours has no place for what it adds."""
        if any(adapted_parts(self)):
            raise CheckpointError(
                "An adapter lies on top of the model: save it with the save_pretrained of PEFT's model, or go on with "
                "the model that its merge_and_unload returns."
            )

    def trained_state_dict(self) -> dict[str, torch.Tensor]:
        """What the base weights lack, under the state dict's own keys, and the embedding's added rows.

        Without the base weights it means nothing: `save_trained` writes it with a configuration that names them.
        """
        state: dict[str, torch.Tensor] = self.state_dict()
        trained = {key: value.detach() for key, value in state.items() if is_trained_key(key)}
        if added := self.config.added_embeddings:
            text_model: Any = self.get_submodule("language_model")
            trained[ADDED_INPUT_ROWS] = text_model.get_input_embeddings().weight.detach()[-added:]
            if not is_tied(text_model):
                trained[ADDED_OUTPUT_ROWS] = text_model.get_output_embeddings().weight.detach()[-added:]
        return trained


def is_trained_key(key: str) -> bool:
    """Whether a key of the whole model's state dict belongs to the trained part."""
    return key.startswith(("hfq_former.", "projector.", "ctc_head.", "reader.unfold.")) or is_lora_key(key)


@contextmanager
def written_beside(folder: str | os.PathLike) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place when the context ends without an error.

    A `folder` that exists keeps files of other names, except that shards of earlier weights are removed; each file is
    replaced whole, the configuration last.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield scratch
        # A scratch folder, and safetensors' files, are for their owner alone; a checkpoint is like any other file.
        open_to = ~_umask()
        scratch.chmod(0o777 & open_to)
        for file in scratch.rglob("*"):
            file.chmod((0o777 if file.is_dir() else 0o666) & open_to)
        if not target.exists():
            os.replace(scratch, target)
            return
        files = sorted(scratch.iterdir(), key=lambda file: file.name == "config.json")
        written = {file.name for file in files}
        for file in files:
            if file.is_dir():
                shutil.rmtree(target / file.name, ignore_errors=True)
            os.replace(file, target / file.name)
        for stale in target.glob("model*.safetensors*"):
            if stale.name not in written:
                stale.unlink()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _without(arguments: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


@torch.no_grad()
def _load_trained(model: Any, state: dict[str, torch.Tensor], dtype: torch.dtype, name: str) -> None:
    expected = stored_state(model.trained_state_dict())
    mismatched = [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape]
    refuse_differences(name, expected.keys() - state.keys(), state.keys() - expected.keys(), mismatched)
    exact = tuple(stored_key(key) for key in model._keep_in_fp32_modules_strict)
    state = {
        key_in_memory(key): _as(value, torch.float32 if key.startswith(exact) else dtype)
        for key, value in state.items()
    }
    if added := model.config.added_embeddings:
        model.get_input_embeddings().weight[-added:] = state.pop(ADDED_INPUT_ROWS)
        if ADDED_OUTPUT_ROWS in state:
            model.get_output_embeddings().weight[-added:] = state.pop(ADDED_OUTPUT_ROWS)
    model.load_state_dict(state, strict=False, assign=True)


def read_trained(folder: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a trained part, as `trained_state_dict` names them, in float32.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    return {
        key_in_memory(key): _as(value, torch.float32) for key, value in _read_weights(os.fspath(folder), {}).items()
    }


def _as(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """In a dtype, where it holds numbers; ids stay what they are."""
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _files_beside(name: str, hub: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a checkpoint that stands alone has the files of Whisper's decoder, as transformers' loading takes it."""
    if os.path.isdir(name):
        return os.path.join(name, hub.get("subfolder") or "", DECODER_FILES), {}
    return name, {**hub, "subfolder": "/".join(filter(None, (hub.get("subfolder"), DECODER_FILES)))}


def _read_weights(name: str, hub: dict[str, Any]) -> dict[str, torch.Tensor]:
    try:
        path = cached_file(name, SAFE_WEIGHTS_NAME, **hub)
        assert path is not None
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"The weights in {name} are damaged ({error}): fetch or save them again.") from error
    except OSError as error:
        raise CheckpointError(f"{name} holds no {SAFE_WEIGHTS_NAME}: give the folder of a saved model.") from error


def _dtype(dtype: torch.dtype | str | None, config: FastSLMConfig) -> torch.dtype:
    if dtype is None or dtype == "auto":
        dtype = config.dtype or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _single_device(device_map: Any) -> torch.device | None:
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device_map, dict):
        raise ValueError(
            "A checkpoint of the trained part goes to one device: save it whole with save_pretrained to spread it over "
            "several."
        )
    return None if device_map is None else torch.device(device_map)
