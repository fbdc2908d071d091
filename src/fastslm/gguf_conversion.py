"""A GGUF language model, de-quantised once and kept as a folder that transformers loads without GGUF."""

from pathlib import Path

import torch

# What llama.cpp calls the pre-tokenizer of SmolLM, the one kind that is read: digits one by one, then GPT-2's rule.
PRE_TOKENIZER = "smollm"


def convert_smollm(source: Path, target: Path) -> None:
    """Write the SmolLM2 GGUF file `source` as a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    The tensors are stored as bfloat16, as the model was published: its 8 significant bits are finer than the 4 bits of
    the quantised matrices, and float16 would be a default that this family is not trained to compute in. `target` must
    exist.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    # transformers leaves out the splitting of digits when it reads a GGUF, which changes the tokens of "two  12".
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    # Without this transformers would take the saved folder for a quantised one and look for the GGUF file.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
