"""LoRA in the language model and in Whisper's decoder: put in, switched off, merged, told apart from the base."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from fastslm.model.configuration import FastSLMConfig
from fastslm.model.starts import mark_started

ADAPTER_NAME = "default"
# Matrices of a layer of Whisper's decoder, of both its attentions.
DECODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
# How PEFT names the trained matrices inside a wrapped linear layer.
ADAPTER_KEYS = (f".lora_A.{ADAPTER_NAME}.", f".lora_B.{ADAPTER_NAME}.")


def add_lora(language_model: nn.Module, config: FastSLMConfig, on_meta: bool = False) -> None:
    """Wrap the target layers of `language_model` in place; its own weights are frozen. Rank 0 adds nothing.

    Only layers of those names change: the state dict keeps every other key, and a wrapped layer's own weight is
    `….base_layer.weight`.

    Args:
        on_meta: create the new matrices without storage, for a checkpoint that is about to fill them.
    """
    if config.lora_rank:
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(config.lora_targets),
        )
        _wrap(language_model, lora, on_meta)


def add_decoder_lora(decoder: nn.Module, config: FastSLMConfig, on_meta: bool = False) -> None:
    """As `add_lora`, in all matrices of the layers of Whisper's decoder, without dropout."""
    if config.decoder_lora_rank:
        lora = LoraConfig(
            r=config.decoder_lora_rank, lora_alpha=config.decoder_lora_alpha, target_modules=list(DECODER_TARGETS)
        )
        _wrap(decoder, lora, on_meta)


def _wrap(module: nn.Module, lora: LoraConfig, on_meta: bool) -> None:
    inject_adapter_in_model(lora, module, ADAPTER_NAME, low_cpu_mem_usage=on_meta)
    if on_meta:
        return  # marked as started, a matrix that a checkpoint lacks would not be reported as missing
    # PEFT has just initialised them (B is zero); transformers' own initialisation must not do it again.
    for layer in lora_layers(module):
        mark_started(*(getattr(layer, name) for name in layer.adapter_layer_names))


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """Every layer that LoRA wraps."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def is_lora_key(key: str) -> bool:
    """Whether a key of the state dict is one of LoRA's matrices."""
    return any(part in key for part in ADAPTER_KEYS)


@contextmanager
def lora_switched(model: nn.Module, on: bool) -> Iterator[None]:
    """LoRA on or off inside the context; as it was afterwards. Off, the model computes as its base to the last bit.

    Whether parameters are trainable is left alone, which PEFT's own `enable_adapters` does not do. The switch is the
    model's: two threads must not ask one model with and without speech at the same time.
    """
    changed = [layer for layer in lora_layers(model) if layer.disable_adapters == on]
    for layer in changed:
        layer._disable_adapters = not on
    try:
        yield
    finally:
        for layer in changed:
            layer._disable_adapters = on


def lora_parameters(module: nn.Module) -> list[nn.Parameter]:
    """LoRA's matrices in a module, in its order."""
    return [parameter for name, parameter in module.named_parameters() if is_lora_key(f".{name}")]


def merge_lora(language_model: nn.Module) -> None:
    """Add LoRA's product into the weights that it wraps and take the wrappers out, in place.

    Raises:
        ValueError: a merged weight is not finite.
    """
    for name, module in list(language_model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)  # type: ignore[operator]
            parent, _, child = name.rpartition(".")
            setattr(language_model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(language_model, "peft_config"):
        del language_model.peft_config
