"""A model of some hundred thousand parameters with random weights, and a tokenizer of bytes: nothing to fetch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_fastslm import make_checkpoint
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from fastslm.audio import SAMPLE_RATE
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.lora import is_lora_key
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor, add_tokens

__all__ = ["make_checkpoint"]

MEL_BINS = 80
WIDTH = 64
FINAL_TOKENS = 5
ROWS = 384  # more than the tokenizer has: nothing grows


def text_config(kind: str, vocab_size: int = ROWS, **changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "eos_token_id": 258,
        "pad_token_id": 256,
        "bos_token_id": None,
    }
    if kind == "qwen3":
        sizes["head_dim"] = 16
    return {"qwen3": Qwen3Config, "llama": LlamaConfig}[kind](**{**sizes, **changes})


def whisper_config() -> WhisperConfig:
    return WhisperConfig(
        d_model=WIDTH,
        num_mel_bins=MEL_BINS,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=WIDTH,
        decoder_ffn_dim=WIDTH,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[], PreTrainedTokenizerFast]:
    """Bytes, and ChatML's three tokens: 259 ids, before FastSLM's are added."""

    def make() -> PreTrainedTokenizerFast:
        alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left"
        )

    return make


@pytest.fixture(scope="session")
def processor(make_tokenizer: Callable[[], PreTrainedTokenizerFast]) -> FastSLMProcessor:
    """For the models of `make_model`: five tokens a window."""
    return FastSLMProcessor(
        WhisperFeatureExtractor(feature_size=MEL_BINS), add_tokens(make_tokenizer()), tokens_per_window=FINAL_TOKENS
    )


@pytest.fixture(scope="session")
def make_config(processor: FastSLMProcessor) -> Callable[..., FastSLMConfig]:
    """`make_config(kind="qwen3", hfq={…}, text={…}, **changes)`"""

    def make(
        kind: str = "qwen3", hfq: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **changes: Any
    ) -> FastSLMConfig:
        former = {"hidden_size": WIDTH, "head_size": 32, "stage_tokens": [8, 8, 8], "final_tokens": FINAL_TOKENS}
        return FastSLMConfig(
            **{
                "audio_config": whisper_config(),
                "hfq_config": {**former, **(hfq or {})},
                "text_config": text_config(kind, **(text or {})),
                "lora_rank": 4,
                "lora_alpha": 8,
                "audio_token_id": processor.audio_token_id,
                **changes,
            }
        )

    return make


@pytest.fixture(scope="session")
def build_model(make_config: Callable[..., FastSLMConfig]) -> Callable[..., FastSLMForConditionalGeneration]:
    """A model in evaluation mode whose LoRA does something. Arguments are `make_config`'s, and a seed."""

    def make(kind: str = "qwen3", seed: int = 0, **changes: Any) -> FastSLMForConditionalGeneration:
        torch.manual_seed(seed)
        model = FastSLMForConditionalGeneration(make_config(kind, **changes))
        wake(model)
        return model.eval()

    return make


@pytest.fixture
def make_model(build_model: Callable[..., FastSLMForConditionalGeneration]) -> Callable[..., Any]:
    """As `build_model`, for tests that change what they are given."""
    return build_model


@torch.no_grad()
def wake(model: FastSLMForConditionalGeneration) -> None:
    """Random values large enough that clip, prompt and LoRA each decide what is said."""
    for name, parameter in model.named_parameters():
        if name.endswith("low_rank.B") or name.startswith("projector"):
            parameter.normal_(0.0, 0.3)
        elif "language_model" in name and parameter.dim() == 2 and not is_lora_key(name):
            parameter.normal_(0.0, 0.2)


@pytest.fixture(scope="session")
def base_folders(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[[], PreTrainedTokenizerFast]
) -> tuple[Path, Path, Path]:
    """Folders of a Whisper, of a Llama whose rows its tokenizer uses all, and of one whose output is not tied."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(7)
    WhisperForConditionalGeneration(whisper_config()).save_pretrained(root / "whisper")
    tokenizer = make_tokenizer()
    for name, tied in (("llama", True), ("untied", False)):
        config = text_config("llama", len(tokenizer), tie_word_embeddings=tied)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root / "whisper", root / "llama", root / "untied"


@pytest.fixture(scope="session")
def clips() -> dict[str, np.ndarray]:
    """Noise that swells and fades, of 1.2 s, 12 s and 35 s: one window, one, and two."""
    generator = np.random.default_rng(3)
    made = {}
    for name, seconds in (("short", 1.2), ("middle", 12.0), ("long", 35.0)):
        samples = round(seconds * SAMPLE_RATE)
        swell = np.sin(np.arange(samples) * (2 * np.pi / SAMPLE_RATE)) ** 2
        made[name] = (generator.standard_normal(samples) * 0.1 * swell).astype(np.float32)
    return made
