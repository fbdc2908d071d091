"""A GGUF language model, de-quantised once and kept as a folder that transformers loads without GGUF."""

from pathlib import Path


def convert_smollm(source: Path, target: Path) -> None:
    """Write the SmolLM2 GGUF file `source` as a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    The tensors are stored as bfloat16, as the model was published: the rounding is far below that of the 4 bits (the
    loss on a page of English is 4.1325, in float32 4.1321), and float16 is not what this family was trained to compute
    in. `target` must exist.
    """
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    # transformers leaves out the splitting of digits when it reads a GGUF, which changes the tokens of "two  12".
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Newer releases keep a GGUF packed unless told otherwise; older ones always de-quantise and know no such option.
    packed = getattr(transformers, "GgufConfig", None)
    options = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32, **options)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.bfloat16().save_pretrained(target)
    tokenizer.save_pretrained(target)
