"""What is kept of a recording."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from tiny_fastslm import noise

from fastslm.errors import CheckpointError, FastSLMError
from fastslm.longform.memory import MemoryFacts, SpeechMemory, place_of
from fastslm.speech import FastSLM


def _memory(windows: int, name: str = "talk", fingerprint: str = "f", hidden: int = 4, **facts) -> SpeechMemory:
    ends = 30.0 * torch.arange(1, windows + 1, dtype=torch.float64) - torch.tensor([0.0] * (windows - 1) + [12.5])
    starts = torch.cat([torch.zeros(1, dtype=torch.float64), ends[:-1]])
    return SpeechMemory(
        torch.randn(windows, 50, hidden),
        torch.stack([starts, ends], 1),
        torch.zeros(windows, dtype=torch.bool),
        MemoryFacts(fingerprint, name, ends[-1].item(), "00", **facts),
    )


def test_loading_a_large_memory_does_not_read_it(tmp_path: Path) -> None:
    file = _memory(3000, hidden=384).save(tmp_path / "day.fslm")
    size = file.stat().st_size
    assert size > 200e6
    process = psutil.Process()
    before = process.memory_info().rss
    memory = SpeechMemory.load(file)
    assert process.memory_info().rss - before < size / 10
    # It is all there: a window that is used is read, and no more than that.
    memory.tokens[1500].sum()
    assert process.memory_info().rss - before < size / 10
    assert memory.tokens[2999].abs().sum() > 0


def test_saving_over_a_loaded_memory_leaves_it_as_it_was(tmp_path: Path) -> None:
    file = _memory(3).save(tmp_path / "a.fslm")
    loaded = SpeechMemory.load(file)
    expected = loaded.tokens.clone()
    _memory(1).save(file)
    assert torch.equal(loaded.tokens, expected)


def test_memories_together_are_one_after_another_and_each_second_finds_its_own(tiny: FastSLM) -> None:
    memories = [
        tiny.encoder.encode(noise(seconds, index), name=f"clip {index}") for index, seconds in enumerate((40, 7))
    ]
    together = SpeechMemory.concatenate(memories)
    assert together.duration == 47
    assert together.times.tolist() == [[0, 30], [30, 40], [40, 47]]
    assert torch.equal(together.tokens, torch.cat([memory.tokens for memory in memories]))
    assert together.facts.name == "clip 0, clip 1"
    together.require(tiny.encoder.fingerprint)
    assert [place_of(seconds, memories) for seconds in (0, 39.5, 40, 47)] == [(0, 0), (0, 39.5), (1, 0), (1, 7)]
    assert tiny.transcribe(together).text == " ".join(tiny.transcribe(memory).text for memory in memories)


def test_a_warning_says_of_which_recording_it_is() -> None:
    together = SpeechMemory.concatenate([_memory(1, "a"), _memory(1, "b", warnings=("It is cut.", "b is short."))])
    assert together.facts.warnings == ("b: It is cut.", "b is short.")


def test_memories_of_different_models_or_none_are_not_put_together() -> None:
    with pytest.raises(CheckpointError, match="made by another model"):
        SpeechMemory.concatenate([_memory(1), _memory(1, "other", "g")])
    with pytest.raises(FastSLMError, match="at least one"):
        SpeechMemory.concatenate([])


def test_a_full_disk_is_a_sentence_and_no_file(tmp_path: Path) -> None:
    """A real limit: the kernel refuses to write beyond 1 MB."""
    child = os.fork()
    if child == 0:  # the limit is the process's, and would stay
        import resource
        import signal

        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
            try:
                _memory(100, hidden=384).save(tmp_path / "a.fslm")
            except FastSLMError as error:
                status = 0 if "cannot be written" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    good = _memory(3)
    file = SpeechMemory(good.tokens, good.times[:2], good.silent, good.facts).save(tmp_path / "a.fslm")
    with pytest.raises(CheckpointError, match="differ in their number of windows"):
        SpeechMemory.load(file)


def test_several_memories_are_partial_if_one_is_and_an_older_file_is_not(tmp_path: Path) -> None:
    whole, part = _memory(2), _memory(2, partial=True)
    assert SpeechMemory.concatenate([whole, part]).facts.partial
    assert not SpeechMemory.concatenate([whole, whole]).facts.partial
    assert SpeechMemory.load(part.save(tmp_path / "part.fslm")).facts.partial
    facts = asdict(whole.facts)
    del facts["partial"]
    tensors = {"tokens": whole.tokens, "times": whole.times, "silent": whole.silent}
    metadata = {"format": "fastslm-memory", "version": "1", "facts": json.dumps(facts)}
    save_file(tensors, tmp_path / "older.fslm", metadata=metadata)
    assert not SpeechMemory.load(tmp_path / "older.fslm").facts.partial
