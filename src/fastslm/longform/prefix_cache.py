"""What the language model made of a recording, kept: its keys and values serve every further task and question.

In the prompt layout `audio_first` a recording is one prefix for all of them; in `task_first`, for one task.
"""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.cache_utils import DynamicCache, DynamicLayer

from fastslm.errors import CheckpointError
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.writing import utf8_path, write_tensors

FORMAT = "fastslm-prefix"
VERSION = 1
# About seven hours of SmolLM2-135M in float32, or two of Qwen3-4B in bfloat16.
MAX_BYTES = 2 << 30
# Places by which a layer's room grows at least: a question and its answer mostly fit without another allocation.
GROWTH = 512


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer with room behind them: they grow in place, and shrink to a prefix without a copy."""

    keys: Any
    values: Any

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As transformers' layers: appends (batch, heads, places, channels), and returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
            self._room = (self.keys, self.values)
        held = self.keys.shape[-2]
        whole = held + key_states.shape[-2]
        if whole > self._room[0].shape[-2]:
            self._room = (_grown(self.keys, whole + GROWTH), _grown(self.values, whole + GROWTH))
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[..., held:whole, :] = states
        self.keys, self.values = (room[..., :whole, :] for room in self._room)
        return self.keys, self.values

    @property
    def nbytes(self) -> int:
        """With the room behind."""
        return sum(room.nbytes for room in self._room)


@dataclass
class Prefix:
    """The beginning of a prompt as the language model remembers it.

    Attributes:
        digest: of all that it was computed from (`prefix_digest`).
        length: places.
        cache: transformers' `DynamicCache` of `GrowingLayer`s, at `length` places whenever nothing is being written.
    """

    digest: str
    length: int
    cache: Any

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return sum(layer.nbytes for layer in self.cache.layers)

    def shrink(self) -> None:
        """Forget what was written after it."""
        for layer in self.cache.layers:
            layer.crop(self.length - layer.get_seq_length())


class PrefixCache:
    """The prefixes used last, as many as `max_bytes` hold; for any number of threads.

    What is kept is written behind, by whoever goes on from it, so it belongs to one call at a time: `lease`.
    """

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.max_bytes = max_bytes
        self._kept: OrderedDict[str, Prefix] = OrderedDict()
        self._leases: dict[str, _Lease] = {}
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied or sent to another process, it is empty."""
        return PrefixCache, (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._kept)

    @contextmanager
    def lease(self, digest: str) -> Iterator[None]:
        """Inside, the prefix of that digest is this thread's alone; other threads wait for it here.

        Other digests are not held up. A lease does not need a prefix: it holds while nothing is kept yet, and after the
        cache has given it up.
        """
        with self._lock:
            lease = self._leases.setdefault(digest, _Lease())
            lease.calls += 1
        try:
            with lease.lock:
                yield
        finally:
            with self._lock:
                lease.calls -= 1
                if not lease.calls:
                    del self._leases[digest]

    @property
    def nbytes(self) -> int:
        """Of all that is kept."""
        with self._lock:
            return sum(prefix.nbytes for prefix in self._kept.values())

    def get(self, digest: str) -> Prefix | None:
        """The prefix of that digest, if it is still kept."""
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
            return self._kept.get(digest)

    def put(self, prefix: Prefix) -> None:
        """Keep it, and give up those not used for longest; one that is too large by itself is not kept."""
        with self._lock:
            self._kept.pop(prefix.digest, None)
            self._kept[prefix.digest] = prefix
            self.trim()

    def trim(self) -> None:
        """Give up prefixes until the rest fits; they grow with the longest answer that followed them."""
        with self._lock:
            while self._kept and self.nbytes > self.max_bytes:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Give up all."""
        with self._lock:
            self._kept.clear()


class _Lease:
    """Of one digest. calls: those that have it or wait for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0


def can_keep(model: FastSLMForConditionalGeneration) -> bool:
    """Whether the language model remembers by keys and values of all places alone: no sliding windows, no states."""
    layers = DynamicCache(config=model.config.text_config.get_text_config()).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def prefix_digest(model_facts: Sequence[object], text: str, tokens: Sequence[torch.Tensor]) -> str:
    """Of a prefix: the model with its dtype and positions, the prompt's text, and the speech tokens in it."""
    digest = hashlib.sha256(json.dumps([str(fact) for fact in model_facts] + [text]).encode())
    for own in tokens:
        digest.update(f"{tuple(own.shape)} {own.dtype}".encode())
        digest.update(own.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def prefill(model: FastSLMForConditionalGeneration, ids: torch.Tensor, speech: torch.Tensor, digest: str) -> Prefix:
    """Run a prompt's beginning through the language model.

    Args:
        ids: (1, length), with placeholders. speech: what they stand for, (placeholders, text hidden).
    """
    cache, mask = _empty(model), torch.ones_like(ids)
    model(input_ids=ids, attention_mask=mask, speech_tokens=speech, past_key_values=cache, logits_to_keep=1)
    return Prefix(digest, ids.shape[1], cache)


def save_prefix(prefix: Prefix, path: str | os.PathLike, model_fingerprint: str) -> Path:
    """Write it as one safetensors file, whole or not at all.

    Raises:
        FastSLMError: the file cannot be written.
    """
    prefix.shrink()
    tensors = {}
    for index, layer in enumerate(prefix.cache.layers):
        tensors[f"keys.{index}"] = layer.keys.cpu().contiguous()
        tensors[f"values.{index}"] = layer.values.cpu().contiguous()
    metadata = {"format": FORMAT, "version": str(VERSION), "model": model_fingerprint, "digest": prefix.digest}
    return write_tensors(tensors, path, metadata)


@torch.inference_mode()
def load_prefix(
    path: str | os.PathLike, digest: str, model_fingerprint: str, model: FastSLMForConditionalGeneration
) -> Prefix:
    """Read what `save_prefix` wrote.

    Raises:
        CheckpointError: it is no such file, damaged, of another model, or of another recording, dtype or prompt.
    """
    name = os.fspath(path)
    try:
        with utf8_path(name) as readable, safe_open(readable, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or int(metadata["version"]) > VERSION:
                raise CheckpointError(f"{name} is no kept prefix that this fastslm can read: name another file.")
            if metadata["model"] != model_fingerprint:
                raise CheckpointError(
                    f"{name} was kept by another model (its fingerprint is {metadata['model']}, this model's "
                    f"{model_fingerprint}): name another file, or remove it."
                )
            if metadata["digest"] != digest:
                raise CheckpointError(
                    f"{name} was kept of another recording, dtype, prompt or rope_scaling: name another file, or "
                    "remove it."
                )
            cache = _empty(model)
            for index in range(len(cache.layers)):
                keys, values = (file.get_tensor(f"{kind}.{index}").to(model.device) for kind in ("keys", "values"))
                cache.update(keys, values, index)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{name} is no kept prefix, or it is damaged ({error}): name another file, or remove it."
        ) from error
    cache.holds_speech = True  # as `forward` marks it: LoRA stays on
    return Prefix(digest, cache.get_seq_length(), cache)


def _empty(model: FastSLMForConditionalGeneration) -> Any:
    cache = DynamicCache(config=model.config.text_config.get_text_config())
    cache.layers = [GrowingLayer() for _ in cache.layers]  # type: ignore[reportAttributeAccessIssue]
    return cache


def _grown(held: torch.Tensor, places: int) -> torch.Tensor:
    room = held.new_empty((*held.shape[:-2], places, held.shape[-1]))
    room[..., : held.shape[-2], :] = held
    return room
