"""A FastSLM of a few thousand random weights, saved as its trained part beside its base weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_reader import add_reader_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from fastslm.loading import load
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.speech import FastSLM

WIDTH = 48
CONTEXT = 2048
MakeCheckpoint = Callable[..., Path]


def write_bases(root: Path) -> tuple[Path, Path]:
    """Folders of a random Whisper and of a random Llama that reads letters."""
    torch.manual_seed(0)
    whisper = WhisperConfig(
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    WhisperForConditionalGeneration(whisper).save_pretrained(root / "whisper")
    letters = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", *map(chr, range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"
    ).save_pretrained(root / "llama")
    llama = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    LlamaForCausalLM(llama).save_pretrained(root / "llama")
    return root / "whisper", root / "llama"


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """`make_checkpoint(seed=0, **config)`: the folder of a tiny checkpoint whose configuration has these values.

    `reader=True`: its own Whisper's decoder reads the tokens, and the CTC head what the unfolder makes of them.
    """
    bases = write_bases(tmp_path_factory.mktemp("bases"))
    add_reader_tokenizer(bases[0])

    def make(seed: int = 0, reader: bool = False, **config: Any) -> Path:
        torch.manual_seed(seed)
        if reader:
            config = {"reader_base": str(bases[0]), "reader_layers": 1, "ctc_reads": "frames", **config}
        processor = FastSLMProcessor.from_base(*bases, mel_mode=config.get("mel_mode", "window"))
        model = FastSLMForConditionalGeneration.from_base(
            *bases,
            tokenizer=processor.tokenizer,
            hfq_config={"head_size": 16, "stage_tokens": [10, 10, 10], "detail_blocks": 1},
            **{"ctc_head": True, "ctc_hidden_size": 16, "ctc_layers": 1, **config},
        )
        folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
        model.save_trained(folder)
        processor.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """The folder of a tiny checkpoint."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> FastSLM:
    """A tiny model, in float32 on every processor."""
    return load(tiny_checkpoint, dtype="float32", quiet=True)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Loud noise, float32 (samples,) at 16 kHz."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16_000))).astype(np.float32)
