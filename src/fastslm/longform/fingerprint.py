"""Which model it was: digests of its weights, the same in whatever dtype and on whatever device it is loaded."""

import hashlib
from collections.abc import Iterable

import torch

from fastslm.model.lora import stored_key
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.saving import is_trained_key

DIGEST_CHARACTERS = 16


def token_fingerprint(model: FastSLMForConditionalGeneration) -> str:
    """Of all that decides what speech tokens a recording becomes: mel, encoder and HFQ-Former.

    A memory fits every model with the same one, whatever its language model and its LoRA.
    """
    config = model.config
    facts = [config.mel_mode, config.hfq_config.head_size, config.hfq_config.detail_positions]
    facts += [config.hfq_config.attention_span, config.audio_config.encoder_attention_heads]
    parts = (("encoder", model.encoder), ("hfq_former", model.hfq_former))
    named = [(f"{part}.{name}", tensor) for part, module in parts for name, tensor in module.named_parameters()]
    return _digest(facts, named)


def model_fingerprint(model: FastSLMForConditionalGeneration) -> str:
    """Of everything that was trained, and of the speech tokens: what a measured figure belongs to."""
    trained = [(stored_key(name), tensor) for name, tensor in model.state_dict().items() if is_trained_key(name)]
    if model.whisper_decoder is not None:
        # Its LoRA may have been merged.
        trained += [(f"decoder.{name}", tensor) for name, tensor in model.whisper_decoder.decoder.named_parameters()]
    return _digest([token_fingerprint(model), model.config.base_text_model], trained)


def _digest(facts: Iterable[object], tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256("\n".join(str(fact) for fact in facts).encode())
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"\n{name} {tuple(tensor.shape)}\n".encode())
        # bfloat16 is what all dtypes of one checkpoint can be reduced to (float16 nearly always).
        rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(rounded.numpy().tobytes())
    return digest.hexdigest()[:DIGEST_CHARACTERS]
