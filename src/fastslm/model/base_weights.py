"""The frozen base: Whisper's encoder and decoder and a text model, loaded from their own checkpoints."""

import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from fastslm.errors import CheckpointError
from fastslm.model.configuration import FastSLMConfig
from fastslm.weights import resolve


class PretrainedEncoder(WhisperEncoder):
    """Whisper's encoder, which does not mind a decoder in the file that it is read from."""

    _keys_to_ignore_on_load_unexpected = {r"^(model\.)?decoder\.", r"^proj_out\."}  # noqa: RUF012


def load_encoder(name: str | os.PathLike, dtype: torch.dtype = torch.float32) -> WhisperEncoder:
    """The encoder of a Whisper checkpoint, whether it also holds a decoder or not.

    Args:
        name: what `fastslm.weights.resolve` knows: a name, a folder, a Hub id.

    Raises:
        WeightsError: the weights cannot be found or fetched.
        CheckpointError: they lack a tensor of the encoder.
    """
    loaded: Any = PretrainedEncoder.from_pretrained(
        resolve(name), dtype=dtype, output_loading_info=True, key_mapping={r"^(model\.)?encoder\.": ""}
    )
    encoder, info = loaded
    refuse_differences(os.fspath(name), info["missing_keys"], (), info["mismatched_keys"])
    return encoder


class PretrainedDecoder(WhisperDecoder):
    """Whisper's decoder, which does not mind an encoder in the file that it is read from."""

    _keys_to_ignore_on_load_unexpected = {r"^(model\.)?encoder\.", r"^proj_out\."}  # noqa: RUF012


def load_decoder(name: str | os.PathLike, dtype: torch.dtype = torch.float32) -> WhisperDecoder:
    """The decoder of a Whisper checkpoint.

    Raises:
        WeightsError: the weights cannot be found or fetched.
        CheckpointError: they lack a tensor of the decoder.
    """
    loaded: Any = PretrainedDecoder.from_pretrained(
        resolve(name), dtype=dtype, output_loading_info=True, key_mapping={r"^(model\.)?decoder\.": ""}
    )
    decoder, info = loaded
    refuse_differences(os.fspath(name), info["missing_keys"], (), info["mismatched_keys"])
    return decoder


def load_text_model(name: str | os.PathLike, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    """A causal language model of any kind that transformers knows. `kwargs` go to its `from_pretrained`.

    Raises:
        WeightsError: the weights cannot be found or fetched.
        CheckpointError: they lack a tensor.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=dtype, output_loading_info=True, **kwargs)
    model, info = loaded
    refuse_differences(os.fspath(name), info["missing_keys"], (), info["mismatched_keys"])
    return model


def refuse_differences(name: str, missing: Any, unexpected: Any, mismatched: Any) -> None:
    """Never let a tensor be random, left over or of another shape.

    Raises:
        CheckpointError: one of the three holds a key.
    """
    for keys, what in ((missing, "lacks"), (unexpected, "also holds"), (mismatched, "has in another shape")):
        if keys:
            first = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)[0]
            against = "does not describe" if what == "also holds" else "describes"
            raise CheckpointError(
                f"The checkpoint {name} {what} {len(keys)} tensors that its configuration {against}, such as {first}: "
                "use the weights and the config.json that were saved together."
            )


def check_base(config: FastSLMConfig, encoder: WhisperEncoder, text_model: Any) -> None:
    """The base weights must be those that a checkpoint's trained part was made on, as far as sizes tell.

    Raises:
        CheckpointError: another size or kind.
    """
    text, base_text = config.text_config.get_text_config(), text_model.config.get_text_config()
    rows = text_model.get_input_embeddings().weight.shape[0] + config.added_embeddings
    facts = [
        ("encoder width", config.audio_config.d_model, encoder.config.d_model, config.base_encoder),
        ("encoder layers", config.audio_config.encoder_layers, encoder.config.encoder_layers, config.base_encoder),
        ("mel bins", config.audio_config.num_mel_bins, encoder.config.num_mel_bins, config.base_encoder),
        ("text model", text.model_type, base_text.model_type, config.base_text_model),
        ("text width", text.hidden_size, base_text.hidden_size, config.base_text_model),
        ("text layers", text.num_hidden_layers, base_text.num_hidden_layers, config.base_text_model),
        ("vocabulary", text.vocab_size, rows, config.base_text_model),
    ]
    for what, wanted, found, base in facts:
        if wanted != found:
            raise CheckpointError(
                f"The checkpoint needs base weights with {what} {wanted}, but {base} has {found}: name the base that "
                "it was trained on."
            )


def check_decoder(config: FastSLMConfig, decoder: WhisperDecoder) -> None:
    """Whisper's decoder must be as the encoder's configuration has it, which is all that a checkpoint keeps.

    Raises:
        CheckpointError: another size.
    """
    for what in ("d_model", "decoder_layers", "vocab_size", "max_target_positions"):
        wanted, found = getattr(config.audio_config, what), getattr(decoder.config, what)
        if wanted != found:
            raise CheckpointError(
                f"The decoder of {config.base_decoder} has {what} {found}, but the configuration of the encoder "
                f"{config.base_encoder} says {wanted}: name the decoder that belongs to the encoder."
            )


@torch.no_grad()
def grow_embeddings(text_model: Any, rows: int) -> None:
    """Add rows to the embedding, each the mean of all others, for tokens that the tokenizer has beyond the matrix.

    The output embedding grows with it.
    """
    if rows == 0:
        return
    size = text_model.get_input_embeddings().weight.shape[0]
    text_model.resize_token_embeddings(size + rows, mean_resizing=False)
    for embedding in (text_model.get_input_embeddings(), text_model.get_output_embeddings()):
        # Tied matrices are filled twice, with the same values.
        embedding.weight[-rows:] = embedding.weight[:-rows].float().mean(0).to(embedding.weight.dtype)


def is_tied(text_model: Any) -> bool:
    """Whether the output embedding is the input embedding."""
    return text_model.get_input_embeddings().weight is text_model.get_output_embeddings().weight
