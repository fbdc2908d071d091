"""Configurations as they were written before the decoder had its name: their keys under today's names."""

from typing import Any

from fastslm.model.capabilities import Capabilities

# Keys that only changed their names.
RENAMED = {
    "reader_base": "base_decoder",
    "reader_layers": "unfolder_layers",
    "reader_lora_rank": "decoder_lora_rank",
    "reader_lora_alpha": "decoder_lora_alpha",
}
# Keys that are a part of `capabilities` today.
CAPABILITIES = {
    "languages": "languages",
    "transcript_reader": "decoder",
    "translates_into": "translates_into",
    "taught_with": "taught_with",
    "taught_seconds": "taught_seconds",
}


def take_old_keys(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take the old keys out of `given`.

    Returns:
        what they mean as arguments of `FastSLMConfig`, and as keys of its `capabilities`.
    """
    arguments = {new: given.pop(old) for old, new in RENAMED.items() if old in given}
    found = {new: given.pop(old) for old, new in CAPABILITIES.items() if old in given}
    if "heard_words" in given:
        found["via"] = "transcript" if given.pop("heard_words") else "speech"
    # The words are cut by the tokenizer of the checkpoint itself.
    given.pop("words_base", None)
    reads, tasks = given.pop("llm_reads_speech", None), given.pop("llm_tasks", None)
    if reads is not None or tasks is not None:
        found["tasks"] = tasks if reads else Capabilities.tasks
    return arguments, found
