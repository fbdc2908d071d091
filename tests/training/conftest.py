"""A speech model of a few thousand parameters, and a corpus of tones, for runs that take seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_reader import add_reader_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from fastslm.audio import SAMPLE_RATE

WORDS = {"l": 220.0, "m": 440.0, "h": 880.0}


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a random Whisper and a random Llama, each with a tokenizer of characters."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    whisper = WhisperConfig(
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    WhisperForConditionalGeneration(whisper).save_pretrained(root / "whisper")
    add_reader_tokenizer(root / "whisper")
    letters = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", *map(chr, range(32, 127)), "\n"]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    fast.save_pretrained(root / "llama")
    llama = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    LlamaForCausalLM(llama).save_pretrained(root / "llama")
    return root / "whisper", root / "llama"


@pytest.fixture(scope="session")
def tone_corpus(tmp_path_factory: pytest.TempPathFactory, encode: Any) -> Path:
    """A folder with train.jsonl (36 clips) and validation.jsonl (4): words that are tones of three pitches."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, clips in (("train", 36), ("validation", 4)):
        lines = []
        for index in range(clips):
            words = [list(WORDS)[int(i)] for i in rng.integers(len(WORDS), size=4)]
            time = np.arange(round(0.5 * SAMPLE_RATE)) / SAMPLE_RATE
            wave = np.concatenate([0.3 * np.sin(2 * np.pi * WORDS[word] * time) for word in words])
            name = f"{split}-{index}.wav"
            encode(root / name, wave.astype(np.float32))
            row = {"id": f"{split}-{index}", "audio": name, "duration": 2.0, "text": " ".join(words)}
            lines.append(json.dumps(row))
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def recipe_content(tiny_bases: tuple[Path, Path], tone_corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """A whole recipe of two short phases on the tone corpus, as `check_recipe` takes it."""
    whisper, llama = tiny_bases
    return {
        "name": "tones",
        "stage": 1,
        "seed": 3,
        "out": str(tmp_path / "run"),
        "threads": 1,
        "precision": "float32",
        "model": {
            "encoder": str(whisper),
            "text_model": str(llama),
            "hfq": {
                "stage_tokens": [16, 16, 16],
                "detail_blocks": 4,
                "query_start": "time",
                "detail_positions": True,
                "detail_start": "positional",
                "attention_span": 1,
            },
            "ctc": {"hidden_size": 16, "layers": 1, "steps_per_token": 4},
            "lora": {"rank": 2},
        },
        "data": {
            "train": [{"path": str(tone_corpus / "train.jsonl")}],
            "validation": str(tone_corpus / "validation.jsonl"),
            "variants": 2,
            "cache": str(tone_corpus / "cache"),
        },
        "phases": [
            {"name": "tied", "objective": "tied", "steps": 4, "batch_windows": 2, "warmup_steps": 2}
            | {"rates": {"hfq_other": 0.003, "head_other": 0.003}, "shift_frames": 5},
            {"name": "ctc", "objective": "ctc", "steps": 6, "batch_windows": 2, "accumulate": 2, "average": 0.5}
            | {"rates": {"hfq_matrices": 0.01, "hfq_other": 0.001, "head_other": 0.001}, "mask": 0.1},
        ],
    }


@pytest.fixture
def reader_content(recipe_content: dict[str, Any]) -> dict[str, Any]:
    """A whole recipe whose model has Whisper's decoder as its reader: frames first, then the decoder's text."""
    model = recipe_content["model"]
    model["reader"] = {"base": model["encoder"], "layers": 1, "start_windows": 5}
    model["ctc"] = {"hidden_size": 16, "layers": 1, "reads": "frames"}
    rates = {"hfq_other": 0.001, "reader_other": 0.001}
    recipe_content["phases"] = [
        {"name": "frames", "objective": "frames", "steps": 2, "batch_windows": 2, "mask": 0.1, "rates": rates},
        {"name": "reader", "objective": "reader", "steps": 3, "batch_windows": 2, "frames_weight": 0.5}
        | {"rates": {**rates, "head_other": 0.001, "reader_matrices": 0.01}, "ctc_weight": 0.3, "average": 0.5},
    ]
    return recipe_content
