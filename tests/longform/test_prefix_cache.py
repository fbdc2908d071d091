"""Recordings kept as the language model remembers them."""

import resource
from pathlib import Path

import pytest
import torch
from tiny_fastslm import MakeCheckpoint, noise

from fastslm.errors import CheckpointError, FastSLMError
from fastslm.loading import load
from fastslm.longform.generation import prompt_ids
from fastslm.longform.prefix_cache import GROWTH, GrowingLayer, Prefix, PrefixCache, load_prefix, prefill, save_prefix
from fastslm.speech import FastSLM

DIGEST = "d" * 64


def _prefix(tiny: FastSLM, seconds: float = 65, digest: str = DIGEST) -> tuple[Prefix, torch.Tensor, torch.Tensor]:
    """A prefix, the ids of its whole prompt, and its speech."""
    memory = tiny.encode(noise(seconds))
    prompt = tiny.processor.build_prompt("ask", question="Who won?")
    windows = [len(memory.tokens)]
    head = prompt_ids(tiny.processor, tiny.processor.split_prompt(prompt)[0], windows)
    speech = tiny.model.project(memory.tokens).flatten(0, 1)
    return prefill(tiny.model, head, speech, digest), prompt_ids(tiny.processor, prompt, windows), speech


@torch.inference_mode()
def test_what_follows_a_prefix_has_the_logits_of_the_whole_prompt(tiny: FastSLM, tmp_path: Path) -> None:
    prefix, ids, speech = _prefix(tiny)
    fresh = tiny.model(input_ids=ids, speech_tokens=speech).logits[:, prefix.length :]
    assert fresh.dtype is torch.float32
    saved = load_prefix(save_prefix(prefix, tmp_path / "a.kv", "me"), DIGEST, "me", tiny.model)
    for kept in (prefix, prefix, saved):
        cached = tiny.model(input_ids=ids[:, prefix.length :], past_key_values=kept.cache).logits
        assert torch.allclose(cached, fresh, atol=1e-5, rtol=0)
        assert kept.cache.get_seq_length() == ids.shape[1]
        kept.shrink()
        assert kept.cache.get_seq_length() == prefix.length


def test_the_beginning_of_a_prompt_has_the_ids_that_it_has_in_the_whole(tiny: FastSLM) -> None:
    for task, options in (("ask", {"question": "Who?"}), ("summarize", {}), ("translate", {"language": "ko"})):
        prompt = tiny.processor.build_prompt(task, **options)
        head = prompt_ids(tiny.processor, tiny.processor.split_prompt(prompt)[0], [2])
        assert torch.equal(prompt_ids(tiny.processor, prompt, [2])[:, : head.shape[1]], head)


def test_a_layer_holds_what_was_appended_whatever_the_steps() -> None:
    layer, given = GrowingLayer(), []
    for places in (7, 1, GROWTH, 3, 2 * GROWTH):
        given.append(torch.randn(1, 2, places, 4))
        keys, values = layer.update(given[-1], given[-1] + 1)
    assert torch.equal(keys, torch.cat(given, -2))
    assert torch.equal(values, torch.cat(given, -2) + 1)
    layer.crop(7 - layer.get_seq_length())
    assert torch.equal(layer.keys, given[0])
    room = layer._room[0].data_ptr()
    layer.update(given[1], given[1])
    assert layer._room[0].data_ptr() == room


def test_the_prefixes_used_last_stay_and_never_take_more_than_their_bytes(tiny: FastSLM) -> None:
    one, two, three = (_prefix(tiny, 1, name)[0] for name in ("one", "two", "three"))
    cache = PrefixCache(max_bytes=2 * one.nbytes)
    cache.put(one)
    cache.put(two)
    assert cache.get("one") is one
    cache.put(three)
    assert (cache.get("one"), cache.get("two"), cache.get("three")) == (one, None, three)
    assert cache.nbytes <= cache.max_bytes
    cache.max_bytes = one.nbytes - 1
    cache.trim()
    assert len(cache) == 0


def test_a_prefix_of_another_model_recording_or_damaged_is_refused(tiny: FastSLM, tmp_path: Path) -> None:
    file = save_prefix(_prefix(tiny, 1)[0], tmp_path / "a.kv", "me")
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(CheckpointError, match="kept by another model"):
        load_prefix(file, DIGEST, "you", tiny.model)
    with pytest.raises(CheckpointError, match="another recording"):
        load_prefix(file, "e" * 64, "me", tiny.model)
    with pytest.raises(CheckpointError, match="no kept prefix"):
        load_prefix(tiny.encode(noise(1)).save(tmp_path / "a.fslm"), DIGEST, "me", tiny.model)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="damaged"):
        load_prefix(file, DIGEST, "me", tiny.model)


def test_a_full_disk_is_a_sentence_and_no_file(tiny: FastSLM, tmp_path: Path) -> None:
    """A real limit: the kernel refuses to write beyond 1 kB."""
    prefix = _prefix(tiny, 1)[0]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(FastSLMError, match=r"a\.kv cannot be written .*File too large"):
            save_prefix(prefix, tmp_path / "a.kv", "me")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_another_model_does_not_take_a_prefix_file(tiny: FastSLM, make_checkpoint: MakeCheckpoint, tmp_path) -> None:
    other = load(make_checkpoint(seed=1), quiet=True)
    tiny.ask(noise(1), "Who?", max_new_tokens=2, prefix_file=tmp_path / "a.kv")
    with pytest.raises(CheckpointError, match="kept by another model"):
        other.ask(noise(1), "Who?", max_new_tokens=2, prefix_file=tmp_path / "a.kv")
