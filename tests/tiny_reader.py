"""What makes a reader of a tiny random Whisper: a tokenizer of letters beside its weights."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

END = 2
PREVIOUS = "<|startofprev|>"
SPECIAL = ("<|nothing|>", "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>", "<|en|>", "<|transcribe|>")


def add_reader_tokenizer(folder: Path, **generation: Any) -> Path:
    """Letters as tokens, 100 in all; padding is the end token, as in Whisper. Returns the folder.

    Args:
        generation: more for the generation configuration.
    """
    tokens = (*SPECIAL, *map(chr, range(32, 125)), PREVIOUS)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*SPECIAL, PREVIOUS)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[END], pad_token=SPECIAL[END], unk_token=SPECIAL[0]
    ).save_pretrained(folder)
    GenerationConfig(
        bos_token_id=END, eos_token_id=END, pad_token_id=END, decoder_start_token_id=1, **generation
    ).save_pretrained(folder)
    return folder
