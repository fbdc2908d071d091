"""transformers' `generate` for prompts with speech: what goes into which step, for beams and for assistants.

Greedy search, sampling, beams, prompt lookup, assistants, streamers and transformers' caches work as for text. What
cannot work with speech is refused before anything is computed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationMixin

from fastslm.model.saving import FastSLMPreTrainedModel
from fastslm.model.threads import settle

# Arguments of `forward` that carry speech, at most one of them.
SPEECH_INPUTS = ("input_features", "encoder_frames", "speech_tokens")
# Arguments of `forward` that a language model which assists does not have.
OURS_ALONE = (*SPEECH_INPUTS, "adapter")


class SpeechGeneration(FastSLMPreTrainedModel, GenerationMixin):
    """`generate` of a model with `forward`'s speech inputs."""

    embed_speech: Any
    place_speech: Any

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'. The audio placeholder is never written, unless `suppress_tokens` says otherwise.

        Args:
            assistant_model: another FastSLM with the same tokenizer and tokens a window, which hears `input_features`
                for itself; or a language model, which sees of the prompt its text alone. If that has fewer tokens, give
                `tokenizer` and `assistant_tokenizer` too.

        Raises:
            ValueError: an option that cannot be followed.
        """
        for sentence in self._impossible(*args, **kwargs):
            raise ValueError(sentence)
        settle()
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def _impossible(self, inputs: Any = None, generation_config: Any = None, *_: Any, **kwargs: Any) -> Iterator[str]:
        """Why these options cannot be followed, one sentence each."""
        speech = [name for name in SPEECH_INPUTS if kwargs.get(name) is not None]

        def asked(name: str) -> Any:
            own = kwargs.get(name)
            return getattr(generation_config or self.generation_config, name, None) if own is None else own

        if any(name in speech for name in SPEECH_INPUTS[:2]) and self.config.capabilities.via == "transcript":
            yield (
                "The language model of this checkpoint answers from transcripts, not from speech tokens: use "
                "fastslm.load, or pass what `fastslm.inference.cascade.inputs_of(model, processor, batch)` returns."
            )
        if asked("assistant_early_exit") is not None:
            yield (
                "The language model was not taught to answer from its first layers: leave assistant_early_exit out, or "
                "give an assistant_model."
            )
        if speech and asked("prefill_chunk_size") is not None:
            yield "A prompt with speech is read in one piece: leave prefill_chunk_size out."
        if speech and asked("token_healing"):
            yield "Token healing writes the prompt anew from its text, in which speech has no place: leave it out."
        if speech and asked("cache_implementation") == "paged":
            yield "Continuous batching takes prompts of text alone: leave cache_implementation='paged' out."

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> dict:
        """Speech goes in with its prompt; afterwards it is in the cache."""
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            *args, is_first_iteration=is_first_iteration, **kwargs
        )
        given = {name: kwargs[name] for name in SPEECH_INPUTS if kwargs.get(name) is not None}
        cache = kwargs.get("past_key_values")
        # Of an assistant no step counts as the first, so transformers withholds the speech from it.
        if is_first_iteration or cache is None or (given and cache.get_seq_length() == 0):
            return {**given, **inputs}
        for name in SPEECH_INPUTS:
            inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Beams and returned sequences: speech is encoded once, and each row's embeddings are repeated as a whole."""
        given = {name: model_kwargs.pop(name, None) for name in SPEECH_INPUTS}
        if expand_size > 1 and input_ids is not None and (speech := self.embed_speech(**given)) is not None:
            counts = (input_ids == self.config.audio_token_id).sum(1).tolist()
            if sum(counts) != len(speech):
                self.place_speech(input_ids, speech)  # raises the sentence
            rows = [row for part in speech.split(counts) for row in [part] * expand_size]
            given = {"speech_tokens": torch.cat(rows)}
        expanded_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return expanded_ids, {**model_kwargs, **{name: x for name, x in given.items() if x is not None}}

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """What proposes tokens: a language model that assists is not handed what it has no ears for."""
        assistant = kwargs.get("assistant_model")
        if assistant is not None and not hasattr(assistant, "embed_speech"):
            given = kwargs["model_kwargs"]
            kwargs["model_kwargs"] = {name: value for name, value in given.items() if name not in OURS_ALONE}
        return super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]
