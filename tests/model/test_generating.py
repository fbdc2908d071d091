"""Every way in which `generate` writes, after a prompt with speech: the greedy text, or a sentence."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TextStreamer

from fastslm.model.lora import lora_parameters, merge_lora

pytestmark = pytest.mark.fault
TOKENS = 12


@pytest.fixture(scope="module")
def model(build_model):
    return build_model("llama")


@pytest.fixture(scope="module")
def speech(model, processor, clips) -> dict[str, torch.Tensor]:
    """A prompt about a window, as log-mel."""
    return dict(processor(processor.build_prompt("ask", question="Who is it?"), clips["middle"]))


@pytest.fixture(scope="module")
def given(model, speech) -> dict[str, dict[str, torch.Tensor]]:
    """The same prompt with each of the inputs that carry speech."""
    rest = {name: value for name, value in speech.items() if name != "input_features"}
    frames = model.encode(speech["input_features"])
    with torch.no_grad():
        tokens = model.embed_speech(speech["input_features"])
    return {
        "input_features": speech,
        "encoder_frames": {**rest, "encoder_frames": frames},
        "speech_tokens": {**rest, "speech_tokens": tokens},
    }


@pytest.fixture(scope="module")
def greedy(model, given) -> list[int]:
    """What is written after that prompt, greedily and step by step."""
    text = write(model, given["speech_tokens"])
    assert len(set(text)) > 2  # else every way would write it
    return text


def write(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> list[int]:
    written = model.generate(**inputs, **{"max_new_tokens": TOKENS, "do_sample": False, **options})
    return written[0, inputs["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def nudged(model: Any, by: float) -> Any:
    """A copy that says nearly the same, or something quite different."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    for parameter in other.language_model.parameters():
        parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.mark.parametrize("by", [0.0, 0.02, 1.0], ids=["itself", "a near one", "another"])
@pytest.mark.parametrize("form", ["input_features", "encoder_frames", "speech_tokens"])
def test_an_assistant_that_hears_leaves_the_greedy_text(form, by, model, given, greedy):
    assistant = nudged(model, by)
    calls = []
    assistant.language_model.register_forward_hook(lambda *_: calls.append(1))
    assert write(model, given[form], assistant_model=assistant) == greedy
    assert calls  # it did propose


def test_an_assistant_of_another_width_hears_for_itself(model, build_model, given, greedy):
    assistant = build_model("qwen3", seed=3, text={"hidden_size": 16, "num_hidden_layers": 1})
    assert write(model, given["input_features"], assistant_model=assistant) == greedy
    with pytest.raises(ValueError, match="32 wide, but the language model is 16 wide"):
        write(model, given["speech_tokens"], assistant_model=assistant)


@pytest.mark.parametrize("form", ["input_features", "speech_tokens"])
def test_a_language_model_assists_with_the_text_of_the_prompt(form, model, given, greedy):
    assistant = copy.deepcopy(model.language_model)
    merge_lora(assistant)
    assert not lora_parameters(assistant)
    assert write(model, given[form], assistant_model=assistant) == greedy


def test_a_language_model_of_fewer_tokens_assists_through_both_tokenizers(model, processor, speech, greedy):
    config = copy.deepcopy(model.config.text_config)
    config.vocab_size = 300
    torch.manual_seed(0)
    assistant = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="assistant_tokenizer"):
        write(model, speech, assistant_model=assistant)
    both = {"tokenizer": processor.tokenizer, "assistant_tokenizer": processor.tokenizer}
    assert write(model, speech, assistant_model=assistant, **both) == greedy


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"use_cache": False},
        {"num_beams": 1, "num_return_sequences": 1},
        {"return_dict_in_generate": False, "output_scores": True},
    ],
    ids=str,
)
def test_the_greedy_text_is_written_in_every_way(options, model, given, greedy):
    for form in ("speech_tokens",) if "use_cache" in options else given:
        assert write(model, given[form], **options) == greedy


def test_streamers_are_told_what_is_written(model, given, processor, capsys, greedy):
    words = processor.tokenizer.decode(greedy).split()
    for options in ({}, {"assistant_model": nudged(model, 0.02)}, {"prompt_lookup_num_tokens": 3}):
        write(model, given["speech_tokens"], streamer=TextStreamer(processor.tokenizer, skip_prompt=True), **options)
        assert capsys.readouterr().out.split() == words


@pytest.mark.parametrize("more", [{}, {"prompt_lookup_num_tokens": 2}, {"assistant_model": True}], ids=str)
def test_sampling_draws_from_what_speech_makes_likely(more, model, given, greedy):
    if more:
        more = {name: nudged(model, 0.02) if value is True else value for name, value in more.items()}
    torch.manual_seed(1)
    # So cold that the likeliest token is drawn.
    assert write(model, given["speech_tokens"], do_sample=True, temperature=1e-4, **more) == greedy


def test_beams_hear_the_same_as_one(model, given):
    texts = [write(model, inputs, num_beams=3) for inputs in given.values()]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"assistant_early_exit": 1}, "leave assistant_early_exit out"),
        ({"prefill_chunk_size": 8}, "leave prefill_chunk_size out"),
        ({"token_healing": True}, "leave it out"),
        ({"cache_implementation": "paged"}, "Continuous batching"),
        ({"use_mtp": True}, "num_mtp_layers"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "trust_remote_code"),
        ({"dola_layers": "low"}, "trust_remote_code"),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["input_features", "speech_tokens"])
def test_what_cannot_be_done_with_speech_is_said_in_a_sentence(options, said, form, model, given):
    with pytest.raises(ValueError, match=said):
        write(model, given[form], **options)
    config = copy.deepcopy(model.generation_config)
    config.update(**options)
    with pytest.raises(ValueError, match=said):
        write(model, given[form], generation_config=config)


def test_assistants_and_caches_of_text_alone_work_as_in_transformers(model, processor):
    inputs = dict(processor("Hello, hello, hel"))
    base = copy.deepcopy(model.language_model)
    merge_lora_out(base)
    greedy = write(base, inputs, suppress_tokens=[model.config.audio_token_id])
    assert write(model, inputs) == greedy
    for options in (
        {"assistant_model": nudged(model, 0.02)},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
    ):
        assert write(model, inputs, **options) == greedy
    # A cache that has held speech leaves nothing behind.
    assert write(model, inputs, cache_implementation="static") == greedy


@torch.no_grad()
def merge_lora_out(language_model: Any) -> None:
    """LoRA taken out as if it had learnt nothing."""
    for parameter in lora_parameters(language_model):
        parameter.zero_()
    merge_lora(language_model)
