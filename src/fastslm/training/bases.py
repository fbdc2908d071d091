"""Base models as a recipe names them: a processor, a language model's configuration, random toys."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, WhisperFeatureExtractor

from fastslm.errors import RecipeError
from fastslm.model.processing import FastSLMProcessor, add_tokens
from fastslm.training.recipe import BaseRecipe, Recipe
from fastslm.weights import resolve


def processor_of(recipe: Recipe, n_mels: int) -> FastSLMProcessor:
    """The processor of a model whose language model the recipe names."""
    model = recipe.model
    assert model.text_model is not None
    return FastSLMProcessor(
        WhisperFeatureExtractor(feature_size=n_mels),
        _tokenizer(model.text_model),
        tokens_per_window=model.hfq.final_tokens,
        mel_mode=model.mel_mode,
        prompt_layout=model.prompt_layout,
    )


def _tokenizer(base: BaseRecipe) -> Any:
    name = base.name or base.tokenizer
    return add_tokens(byte_tokenizer() if name is None else AutoTokenizer.from_pretrained(resolve(name)))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, so that any text of any language can be written; for language models that are toys."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def text_config_of(base: BaseRecipe) -> Any:
    """The configuration of a language model, from the recipe or from its weights."""
    if base.config is None:
        return AutoConfig.from_pretrained(resolve(base.name or ""))
    given = dict(base.config)
    kind = given.pop("model_type", None)
    if kind is None:
        raise RecipeError("model.text_model.config has no model_type; name it as transformers does, such as qwen3.")
    try:
        return AutoConfig.for_model(kind, **given)
    except ValueError as error:
        raise RecipeError(f"model.text_model.config: {str(error).splitlines()[0]}") from None
