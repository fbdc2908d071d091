"""One loaded object in many threads and processes: every answer is the one that is given alone."""

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from long_memory import long_memory
from tiny_fastslm import MakeCheckpoint, make_checkpoint, noise

from fastslm.errors import OptionError
from fastslm.loading import load
from fastslm.longform.prefix_cache import PrefixCache
from fastslm.longform.rope import rope_scaled
from fastslm.longform.workers import Workers
from fastslm.model.lora import is_lora_key, lora_switched
from fastslm.model.threads import settle
from fastslm.speech import FastSLM

__all__ = ["make_checkpoint"]
pytestmark = pytest.mark.fault
THREADS = 8
SHORT: Any = {"max_new_tokens": 10, "repetition": "keep"}


@pytest.fixture(scope="module")
def awake(make_checkpoint: MakeCheckpoint) -> FastSLM:
    """A tiny model that says other things of each recording, and with LoRA than without."""
    asr = load(make_checkpoint(reader=True), dtype="float32", quiet=True)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in asr.model.named_parameters():
            if is_lora_key(name) or name.startswith("projector") or "embed_tokens" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
            elif name.startswith("language_model") and parameter.dim() == 2:
                parameter.normal_(0.0, 0.2, generator=generator)
    return asr


@pytest.fixture(autouse=True)
def eager_switching() -> Iterator[None]:
    """Threads give way to each other between any two steps, so that whoever shares something meets."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def all_at_once(calls: list[Callable[[], Any]], rounds: int = 2) -> list[Any]:
    """The results of calls that threads make at the same time, each several times over."""
    together = threading.Barrier(len(calls))

    def repeat(call: Callable[[], Any]) -> list[Any]:
        together.wait(60)
        return [call() for _ in range(rounds)]

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(repeat, calls))


def assert_as_alone(calls: list[Callable[[], Any]], rounds: int = 2) -> list[Any]:
    alone = [call() for call in calls]
    assert all_at_once(calls, rounds) == [[own] * rounds for own in alone]
    return alone


def plain_text(asr: FastSLM, prompt: str, **options: Any) -> list[int]:
    """What `generate` writes after a prompt of text."""
    ids = asr.processor(prompt)["input_ids"]
    return asr.model.generate(input_ids=ids, max_new_tokens=10, do_sample=False, **options)[0].tolist()


@pytest.mark.parametrize("recordings", [1, 3])
def test_questions_of_eight_threads_get_the_answers_that_each_gets_alone(awake: FastSLM, recordings: int) -> None:
    memories = [long_memory(awake, 2 + index) for index in range(recordings)]
    calls = [
        lambda i=index: awake.ask(memories[i % recordings], "Who is it?"[i % 4 :], **SHORT).text
        for index in range(THREADS)
    ]
    assert len(set(assert_as_alone(calls))) > 2


def test_recordings_asked_about_in_threads_before_anything_is_kept(awake: FastSLM) -> None:
    memories = [long_memory(awake, windows) for windows in (1, 2)]
    calls = [lambda i=index: awake.ask(memories[i % 2], "Why?"[i % 3 :], **SHORT).text for index in range(THREADS)]
    alone = [call() for call in calls]
    awake.answerer.prefixes.clear()
    assert all_at_once(calls, 1) == [[text] for text in alone]
    # Each was read once, by whoever came first.
    assert len(awake.answerer.prefixes) == 2


def test_text_is_written_without_lora_beside_speech_with_it(awake: FastSLM) -> None:
    memory = long_memory(awake, 2)
    calls: list[Callable[[], Any]] = [lambda: awake.ask(memory, "Who?", **SHORT).text] * 4
    calls += [lambda prompt=prompt: plain_text(awake, prompt) for prompt in ("One", "Two", "Three", "Four")]
    calls += [lambda: plain_text(awake, "One", adapter=True)]
    alone = assert_as_alone(calls, 3)
    assert alone[-1] != alone[4]


def test_every_task_runs_beside_every_other(awake: FastSLM) -> None:
    memory, clips = long_memory(awake, 2), [noise(31.0, 1), noise(3.0, 2)]
    chunks = [clips[0][start : start + 16_000] for start in range(0, len(clips[0]), 16_000)]

    def stream() -> list[str]:
        live = awake.transcribe_stream(iter(chunks), sampling_rate=16_000, update_seconds=60, cuts="fixed")
        return [text.segment.text for text in live if text.final]

    calls: list[Callable[[], Any]] = [
        lambda: awake.ask(memory, "Who?", **SHORT).text,
        lambda: awake.ask(memory, "Who?", rope_scaling=2, **SHORT).text,
        lambda: awake.ask(clips[0], "Who?", **SHORT).text,
        lambda: awake.summarize([memory, memory], **SHORT).text,
        lambda: awake.transcribe(clips[0], cuts="fixed").text,
        lambda: awake.transcribe(memory, reader="llm", method="whole", **SHORT).text,
        lambda: [result.text for result in awake.transcribe_many(clips, reader="ctc", cuts="fixed")],
        stream,
        lambda: plain_text(awake, "One"),
    ]
    alone = assert_as_alone(calls, 1)
    assert alone[0] != alone[1]


def test_tokens_of_a_recording_are_the_same_bits_in_every_thread(make_checkpoint: MakeCheckpoint) -> None:
    asr = load(make_checkpoint(), dtype="float32", quiet=True)
    asr.encoder = type(asr.encoder)(asr.model, dtype=torch.bfloat16)  # makes its narrow copy on first use
    clips = [noise(seconds, index) for index, seconds in enumerate((95.0, 2.0, 61.0, 31.0))]
    found = all_at_once([lambda clip=clip: asr.encode(clip, cuts="fixed").tokens for clip in clips])
    for clip, tokens in zip(clips, found, strict=True):
        alone = asr.encode(clip, cuts="fixed").tokens
        assert all(torch.equal(own, alone) for own in tokens)


def test_positions_scaled_for_one_call_are_plain_in_another_thread(awake: FastSLM) -> None:
    ids = torch.arange(3, 40)[None]

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return awake.model(input_ids=ids).logits

    before = logits()
    with rope_scaled(awake.model, 2.5), ThreadPoolExecutor(1) as other:
        scaled = logits()
        assert not torch.allclose(scaled, before, atol=1e-6)
        assert torch.equal(other.submit(logits).result(), before)
        with rope_scaled(awake.model, 4.0):
            assert not torch.equal(logits(), scaled)
        assert torch.equal(logits(), scaled)
    assert torch.equal(logits(), before)


def test_lora_switched_off_in_one_thread_is_on_in_another(awake: FastSLM) -> None:
    layer: Any = awake.model.language_model.get_submodule("model.layers.0.mlp.up_proj")
    x = torch.ones(1, 32)
    with_lora = layer(x)
    with lora_switched(False), ThreadPoolExecutor(1) as other:
        assert not torch.equal(layer(x), with_lora)
        assert torch.equal(other.submit(layer, x).result(), with_lora)
    with awake.model.adapter_forced(True), ThreadPoolExecutor(1) as other:
        text = other.submit(plain_text, awake, "One").result()
        assert plain_text(awake, "One") != text
    assert plain_text(awake, "One") == text


def test_prompts_are_padded_while_other_threads_use_the_tokenizer(awake: FastSLM) -> None:
    prompts = [["One", "Three hundred"], ["Two"], ["A", "AB", "ABC"]]
    calls: list[Callable[[], Any]] = [
        lambda texts=texts: [row.tolist() for row in awake.processor(texts)["input_ids"]] for texts in prompts
    ]
    calls += [lambda: awake.processor.tokenizer("Someone" * 50)["input_ids"]] * 4
    assert_as_alone(calls, 40)


def test_a_prefix_belongs_to_one_thread_at_a_time_and_other_prefixes_are_free() -> None:
    cache, inside, entered = PrefixCache(), [], threading.Event()

    def second(digest: str) -> None:
        with cache.lease(digest):
            inside.append(digest)
            entered.set()

    with cache.lease("a"):
        waiting, free = (threading.Thread(target=second, args=(digest,)) for digest in ("a", "b"))
        waiting.start()
        free.start()
        assert entered.wait(10)
        free.join(10)
        assert inside == ["b"]
    waiting.join(10)
    assert inside == ["b", "a"]
    with pytest.raises(RuntimeError), cache.lease("a"):
        raise RuntimeError
    with cache.lease("a"):
        pass


def test_a_thread_never_takes_over_the_number_that_is_lent_to_workers() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found: list[int] = []

        def begin() -> None:
            settle()
            found.append(torch.get_num_threads())

        def workers() -> None:
            settle()
            for _ in range(10):
                with Workers(2) as pool:
                    for _ in range(2):
                        pool.submit(torch.get_num_threads).result()

        lenders = [threading.Thread(target=workers) for _ in range(2)]
        for thread in lenders:
            thread.start()
        while any(thread.is_alive() for thread in lenders):
            thread = threading.Thread(target=begin)
            thread.start()
            thread.join()
        assert set(found) == {4}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda asr: pickle.loads(pickle.dumps(asr))], ids=["copied", "pickled"])
def test_the_object_answers_the_same_elsewhere(way: Callable[[FastSLM], FastSLM], awake: FastSLM) -> None:
    memory, clip = long_memory(awake, 2), noise(2.0)
    with rope_scaled(awake.model, 2.0):
        pass
    alone = [awake.ask(memory, "Who?", **SHORT).text, awake.transcribe(clip).text, plain_text(awake, "One")]
    other = way(awake)
    assert [other.ask(memory, "Who?", **SHORT).text, other.transcribe(clip).text, plain_text(other, "One")] == alone
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()
    assert awake.ask(memory, "Who?", **SHORT).text == alone[0]


def test_a_forked_process_is_told_to_be_spawned(awake: FastSLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "_process", -1)  # of another process
    memory = long_memory(awake, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for call in (
        lambda: awake.ask(memory, "Who?"),
        lambda: awake.transcribe(noise(1.0)),
        lambda: awake.encode(noise(1.0)),
        lambda: list(awake.transcribe_many([noise(1.0)])),
        lambda: awake.transcribe_stream([noise(1.0)]),
    ):
        with pytest.raises(OptionError, match="spawn"):
            call()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    awake.ask(memory, "Who?", **SHORT)
