"""The authors' checkpoint: its names and ours, both ways, and its import as a folder that `from_pretrained` loads.

Sizes are read off the tensors. What cannot be read off them, LoRA's alpha and the language model's configuration and
tokenizer, the caller gives.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, WhisperConfig, WhisperFeatureExtractor

from fastslm.errors import CheckpointError, FastSLMError
from fastslm.model.configuration import LORA_TARGETS, FastSLMConfig, HFQFormerConfig
from fastslm.model.lora import stored_state
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.positions import sinusoids
from fastslm.model.processing import FastSLMProcessor, add_tokens
from fastslm.model.saving import written_beside
from fastslm.prompts import AUDIO_TOKEN
from fastslm.weights import resolve

AUTHORS_TEXT_MODEL = "Qwen/Qwen3-4B"
AUTHORS_LORA_ALPHA = 64
SHARD_SIZE = "5GB"
# Tables of one width computed in different ways differ by up to 1e-4, and the output then by 2e-6.
TABLE_TOLERANCE = 2e-4

# Theirs → ours. A name that ends in a dot stands for everything below it; {n} is a number.
NAMES = (
    ("encoder.whisper.positional_embedding", "encoder.embed_positions.weight"),
    ("encoder.whisper.conv{n}.", "encoder.conv{n}."),
    ("encoder.whisper.blocks.{n}.attn.query.", "encoder.layers.{n}.self_attn.q_proj."),
    ("encoder.whisper.blocks.{n}.attn.key.", "encoder.layers.{n}.self_attn.k_proj."),
    ("encoder.whisper.blocks.{n}.attn.value.", "encoder.layers.{n}.self_attn.v_proj."),
    ("encoder.whisper.blocks.{n}.attn.out.", "encoder.layers.{n}.self_attn.out_proj."),
    ("encoder.whisper.blocks.{n}.attn_ln.", "encoder.layers.{n}.self_attn_layer_norm."),
    ("encoder.whisper.blocks.{n}.mlp.0.", "encoder.layers.{n}.fc1."),
    ("encoder.whisper.blocks.{n}.mlp.2.", "encoder.layers.{n}.fc2."),
    ("encoder.whisper.blocks.{n}.mlp_ln.", "encoder.layers.{n}.final_layer_norm."),
    ("encoder.whisper.ln_post.", "encoder.layer_norm."),
    ("encoder.llm_proj.", "projector."),
    *(
        (f"encoder.{theirs}.{part}", f"hfq_former.{ours}.{our_part}")
        for theirs, ours in (("compressor{n}", "compressor{n}"), ("compressor", "distillation"))
        for part, our_part in (
            ("query", "query"),
            ("q_ln.", "query_norm."),
            ("kv_ln.", "key_value_norm."),
            ("out_proj.", "out_proj."),
        )
    ),
    ("encoder.stage{n}.conv1.", "hfq_former.downsampler{n}.conv1."),
    ("encoder.stage{n}.conv2.", "hfq_former.downsampler{n}.conv2."),
    ("encoder.stage{n}.ln_post.", "hfq_former.downsampler{n}.norm."),
    *(
        (f"encoder.out_attn.{{n}}.{theirs}.{part}.", f"hfq_former.detail_recovery.{{n}}.{ours}.{our_part}.")
        for theirs, ours in (("attn", "self_attention"), ("cross_attn", "cross_attention"))
        for part, our_part in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out_proj", "out_proj"))
    ),
    ("encoder.out_attn.{n}.norm1.", "hfq_former.detail_recovery.{n}.norm1."),
    ("encoder.out_attn.{n}.norm2.", "hfq_former.detail_recovery.{n}.norm2."),
    ("llm.base_model.model.", "language_model."),
)
POSITION_TABLE = re.compile(r"encoder\.compressor\d?\.(q|kv)_pos_embeds")
LORA_A = re.compile(r"(\w+)\.lora_A\.")
OUTPUT_EMBEDDING = "language_model.lm_head.weight"
INPUT_EMBEDDING = "language_model.model.embed_tokens.weight"


def _rules(from_index: int) -> list[tuple[re.Pattern[str], str]]:
    rules = []
    for pair in NAMES:
        source, target = pair[from_index], pair[1 - from_index]
        pattern = re.escape(source).replace(r"\{n\}", r"(\d+)")
        end = "(?P<rest>.+)" if source.endswith(".") else ""
        rules.append((re.compile(f"{pattern}{end}"), target.replace("{n}", r"\1") + (r"\g<rest>" if end else "")))
    return rules


_OURS, _THEIRS = _rules(0), _rules(1)


def our_key(key: str) -> str | None:
    """Our name of one of the authors' tensors; `None` of what we do not store: positional tables, or a stranger."""
    return _renamed(key, _OURS)


def their_key(key: str) -> str | None:
    """The authors' name of one of our tensors; `None` of what they do not have."""
    return _renamed(key, _THEIRS)


def _renamed(key: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        if match := pattern.fullmatch(key):
            return match.expand(target)
    return None


def import_authors(
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    text_model: str | os.PathLike = AUTHORS_TEXT_MODEL,
    lora_alpha: int = AUTHORS_LORA_ALPHA,
) -> FastSLMConfig:
    """Turn a state dict of the authors' code into a folder with model and processor.

    Tensors keep their dtype; the model loads in float32 by default.

    Args:
        checkpoint: `torch.save(model.state_dict())`, or the same as safetensors.
        folder: written whole or not at all.
        text_model: a folder or Hub id whose configuration and tokenizer are those of the language model inside.
        lora_alpha: the scale of LoRA, which no tensor tells.

    Raises:
        CheckpointError: it cannot be read, or is not such a checkpoint, or does not fit the language model.
        WeightsError: the language model's description cannot be found or fetched.
        FastSLMError: the folder cannot be written.
    """
    ours, model, processor = _prepare(read_state_dict(checkpoint), text_model, lora_alpha)
    model.config.architectures = [type(model).__name__]
    contiguous = {key: value.contiguous() for key, value in ours.items()}
    try:
        with written_beside(folder) as scratch:
            model.config.save_pretrained(scratch)
            model.generation_config.save_pretrained(scratch)  # type: ignore[union-attr]
            processor.save_pretrained(scratch)
            save_torch_state_dict(contiguous, scratch, max_shard_size=SHARD_SIZE, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FastSLMError(
            f"{folder} cannot be written ({reason}): choose another place, or free some room."
        ) from error
    return model.config


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file, on the CPU. Code in it is never run.

    Raises:
        CheckpointError: it is missing, damaged, or holds something else than tensors under names.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint file {file}: give the file that torch.save wrote.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): check its permissions.") from error
    except Exception as error:  # what torch's unpickler raises over other bytes depends on the bytes
        raise CheckpointError(
            f"{file} is not a checkpoint of tensors alone, or is damaged: save it again with "
            "torch.save(model.state_dict(), file)."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{file} holds no state dict, tensors under names: save model.state_dict() itself.")
    return dict(state)


def load_authors(
    state: Mapping[str, torch.Tensor],
    text_model: str | os.PathLike,
    lora_alpha: int = AUTHORS_LORA_ALPHA,
    dtype: torch.dtype = torch.float32,
) -> tuple[FastSLMForConditionalGeneration, FastSLMProcessor]:
    """Model and processor of a state dict in the authors' layout, in evaluation mode.

    Raises:
        CheckpointError: as `import_authors`.
    """
    ours, model, processor = _prepare(state, text_model, lora_alpha)
    model = FastSLMForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=ours, dtype=dtype)
    return model, processor


def _prepare(
    state: Mapping[str, torch.Tensor], text_model: str | os.PathLike, lora_alpha: int
) -> tuple[dict[str, torch.Tensor], FastSLMForConditionalGeneration, FastSLMProcessor]:
    """The tensors under our names, each with a place in the model, which is without values; and the processor."""
    text_config, tokenizer = _language_model(text_model)
    config = infer_config(state, text_config, lora_alpha)
    config.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)  # type: ignore[assignment]
    if len(tokenizer) > (rows := text_config.get_text_config().vocab_size):
        raise CheckpointError(
            f"The tokenizer of {text_model} has {len(tokenizer)} tokens with FastSLM's and the checkpoint {rows} rows: "
            "give the language model that the checkpoint was made on."
        )
    ours = our_state_dict(state)
    with torch.device("meta"):
        model = FastSLMForConditionalGeneration(config)
    expected = stored_state(model.state_dict())
    if config.text_config.tie_word_embeddings:
        expected.pop(OUTPUT_EMBEDDING)
        _drop_tied_output(ours)
    _check_fit(ours, expected)
    processor = FastSLMProcessor(
        WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins),
        tokenizer,
        tokens_per_window=config.tokens_per_window,
        mel_mode=config.mel_mode,
        prompt_layout=config.prompt_layout,
    )
    return ours, model, processor


def infer_config(state: Mapping[str, torch.Tensor], text_config: Any, lora_alpha: int) -> FastSLMConfig:
    """The configuration whose sizes are those of the tensors. Heads are 64 wide throughout, as the authors have it.

    Raises:
        CheckpointError: a tensor that tells a size is missing.
    """

    def shape(key: str) -> torch.Size:
        if key not in state:
            raise CheckpointError(f"The checkpoint lacks {key}, which the authors' layout has: it is another model.")
        return state[key].shape

    def count(pattern: str) -> int:
        return len({match.group(1) for key in state if (match := re.match(pattern, key))})

    text_width, width = shape("encoder.llm_proj.weight")
    frames = shape("encoder.whisper.positional_embedding")[0]
    if text_width != text_config.get_text_config().hidden_size:
        raise CheckpointError(
            f"The checkpoint's language model is {text_width} wide and the given one "
            f"{text_config.get_text_config().hidden_size}: give the language model that it was made on."
        )
    head_size = HFQFormerConfig().head_size
    lora = [(match[1], value.shape[0]) for key, value in state.items() if (match := LORA_A.search(key))]
    ranks = sorted({rank for _, rank in lora})
    if len(ranks) > 1:
        raise CheckpointError(f"LoRA has the ranks {ranks} in one checkpoint: only one rank is supported.")
    return FastSLMConfig(
        audio_config=WhisperConfig(
            d_model=width,
            num_mel_bins=shape("encoder.whisper.conv1.weight")[1],
            encoder_layers=count(r"encoder\.whisper\.blocks\.(\d+)\."),
            encoder_attention_heads=width // head_size,
            encoder_ffn_dim=shape("encoder.whisper.blocks.0.mlp.0.weight")[0],
            max_source_positions=frames,
        ),
        hfq_config=HFQFormerConfig(
            hidden_size=width,
            head_size=head_size,
            window_frames=frames,
            stage_tokens=[shape(f"encoder.compressor{n}.query")[1] for n in (1, 2, 3)],
            final_tokens=shape("encoder.compressor.query")[1],
            detail_blocks=count(r"encoder\.out_attn\.(\d+)\."),
        ),
        text_config=text_config,
        lora_rank=ranks[0] if ranks else 0,
        lora_alpha=lora_alpha,
        lora_targets=sorted({target for target, _ in lora}) or LORA_TARGETS,
        mel_mode="authors",
        prompt_layout="task_first",
        capabilities={"languages": ["en", "ko"], "tasks": None},
        dtype="float32",
    )


def our_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under our names, without the positional tables, which must be Whisper's.

    Raises:
        CheckpointError: a table differs, or a tensor is none of the authors' layout.
    """
    ours = {}
    for key, value in state.items():
        name = our_key(key)
        if POSITION_TABLE.fullmatch(key):
            _check_table(key, value)
        elif name is None:
            raise CheckpointError(
                f"The checkpoint holds {key}, which the authors' layout has not: it is another model."
            )
        else:
            ours[name] = value
    return ours


def authors_state_dict(model: FastSLMForConditionalGeneration) -> dict[str, torch.Tensor]:
    """A model's tensors as the authors' code names them, positional tables included. On meta, shapes alone.

    Raises:
        CheckpointError: the model has a part of ours that theirs has not.
    """
    theirs = {}
    for key, value in stored_state(model.state_dict()).items():
        name = their_key(key)
        if name is None:
            raise CheckpointError(f"The model has {key}, for which the authors' layout has no place: train without it.")
        theirs[name] = value
    former = model.hfq_former
    for number, compressor in enumerate((former.compressor1, former.compressor2, former.compressor3, None), 1):
        name = f"compressor{number}" if compressor is not None else "compressor"
        compressor = compressor or former.distillation
        queries, width = compressor.query.shape[1:]
        for part, length in (("q", queries), ("kv", sum(compressor.scales))):
            table = sinusoids(length, width, torch.device("cpu"), torch.float32)
            theirs[f"encoder.{name}.{part}_pos_embeds"] = table.to(compressor.query.device, copy=True)
    return theirs


def _language_model(name: str | os.PathLike) -> tuple[Any, PreTrainedTokenizerBase]:
    folder = resolve(name, without_weights=True)
    try:
        return AutoConfig.from_pretrained(folder), add_tokens(AutoTokenizer.from_pretrained(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} gives no configuration and tokenizer of a language model: name a folder or a Hub id with both."
        ) from error


def _check_table(key: str, table: torch.Tensor) -> None:
    ours = sinusoids(table.shape[-2], table.shape[-1], torch.device("cpu"), torch.float32)
    difference = (table.float().reshape(ours.shape) - ours).abs().max().item()
    if not difference <= TABLE_TOLERANCE:
        raise CheckpointError(
            f"The positional table differs: {key} is up to {difference:.1e} from Whisper's sinusoids, and "
            f"{TABLE_TOLERANCE:.0e} is allowed, so this checkpoint needs positions that FastSLM has not."
        )


def _drop_tied_output(ours: dict[str, torch.Tensor]) -> None:
    output = ours.pop(OUTPUT_EMBEDDING, None)
    if output is not None and not torch.equal(output, ours.get(INPUT_EMBEDDING, output)):
        raise CheckpointError(
            "The checkpoint's output embedding is not its input embedding, which the language model's configuration "
            "ties: set tie_word_embeddings to false there."
        )


def _check_fit(ours: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    for keys, what in ((expected.keys() - ours.keys(), "lacks"), (ours.keys() - expected.keys(), "also holds")):
        if keys:
            raise CheckpointError(
                f"The checkpoint {what} {len(keys)} tensors beside those that its sizes and the language model's "
                f"configuration ask for, such as {min(keys)}: give the language model that it was made on."
            )
    for key, value in expected.items():
        if ours[key].shape != value.shape:
            raise CheckpointError(
                f"{their_key(key)} is {tuple(ours[key].shape)} in the checkpoint and {tuple(value.shape)} by the "
                "language model's configuration: give the language model that it was made on."
            )
