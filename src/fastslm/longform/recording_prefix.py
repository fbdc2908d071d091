"""Recordings as the beginnings of prompts with one model: read once, kept, and shared by all tasks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fastslm.inference.cascade import speech_embeddings
from fastslm.longform.fingerprint import model_fingerprint
from fastslm.longform.generation import prompt_ids
from fastslm.longform.prefix_cache import Prefix, PrefixCache, load_prefix, prefill, prefix_digest, save_prefix
from fastslm.model.adapters import weights_seen
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor


class RecordingPrefixes:
    """What one model made of the recordings that it read last.

    Attributes:
        cache: what is kept; its `max_bytes` may be set.
    """

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        self.model = model
        self.processor = processor
        self.cache = PrefixCache()
        self._fingerprint: str | None = None
        self._weights: tuple[object, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        self._follow_weights()
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model)
        return self._fingerprint

    def _follow_weights(self) -> None:
        """Forget everything where the language model is another than before: trained, merged, or with an adapter."""
        weights = weights_seen(self.model.language_model, self.model.projector)
        if weights != self._weights:
            self._weights, self._fingerprint = weights, None
            self.cache.clear()

    @contextmanager
    def of(
        self,
        prompt: str,
        tokens: Sequence[torch.Tensor],
        rope_scaling: float | None = None,
        file: Path | None = None,
    ) -> Iterator[tuple[Prefix, bool]]:
        """The beginning of a prompt up to its last recording, and whether it was kept from before.

        Inside, it belongs to this call: more may be written into its cache, which is forgotten afterwards. Another
        thread that asks for the same beginning waits. Only for models that `can_keep`.

        Args:
            prompt: with one `<|AUDIO|>` for each of the recordings.
            tokens: of each recording, (windows, 50, hidden).
            rope_scaling: by which the language model's positions are scaled meanwhile.
            file: read if it is there, else written.

        Raises:
            CheckpointError: the file belongs to another model or recording.
            FastSLMError: it cannot be written.
        """
        head, _ = self.processor.split_prompt(prompt)
        fingerprint = self.fingerprint
        facts = (fingerprint, next(self.model.projector.parameters()).dtype, rope_scaling)
        digest = prefix_digest(facts, head, tokens)
        with self.cache.lease(digest):
            prefix = self.cache.get(digest)
            if prefix is None and file is not None and file.exists():
                prefix = load_prefix(file, digest, fingerprint, self.model)
            kept = prefix is not None
            if prefix is None:
                ids = prompt_ids(self.processor, head, [len(own) for own in tokens]).to(self.model.device)
                prefix = prefill(self.model, ids, self.heard(tokens), digest)
            if file is not None and not file.exists():
                save_prefix(prefix, file, fingerprint)
            self.cache.put(prefix)
            try:
                yield prefix, kept
            finally:
                prefix.shrink()
                self.cache.trim()

    @torch.inference_mode()
    def heard(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the language model reads of recordings, (places, text hidden); a cascade takes seconds."""
        embedded = (speech_embeddings(self.model, self.processor, own.to(self.model.device)) for own in tokens)
        return torch.cat([own.flatten(0, 1) for own in embedded])
