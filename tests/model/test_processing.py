"""From recordings and prompts to what the model reads."""

import wave as wave_file

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from fastslm.audio import SAMPLE_RATE
from fastslm.errors import AudioError, OptionError
from fastslm.features import extract_features
from fastslm.model.processing import DEFAULT_CHAT_TEMPLATE, FastSLMProcessor, add_tokens, audio_token_count
from fastslm.prompts import ADDED_TOKENS, AUDIO_TOKEN

# SmolLM2's, in short: a system turn comes first unless the conversation has one. And Llama's: a first token.
SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}"
    "{% endif %}" + DEFAULT_CHAT_TEMPLATE
)
QUESTIONS = ("Who won?", "And then?\n\nWhat else", "   spaces", "한국어로 답해 주세요", "a" * 300)


@pytest.mark.parametrize(
    ("seconds", "tokens"),
    [
        ("0.05", 50),
        ("1", 50),
        ("29.99", 50),
        ("30", 50),
        ("30.01", 100),
        ("31", 100),
        ("61", 150),
        ("300", 500),
        ("3601", 121 * 50),
    ],
)
@pytest.mark.parametrize("mel_mode", ["window", "authors"])
def test_every_thirty_seconds_are_fifty_tokens(seconds, tokens, mel_mode):
    samples = round(float(seconds) * SAMPLE_RATE)
    assert audio_token_count(samples, mel_mode=mel_mode) == tokens


def test_the_authors_count_whole_frames_and_we_count_samples():
    samples = 30 * SAMPLE_RATE + 80  # half a frame of 10 ms
    assert audio_token_count(samples) == 100
    assert audio_token_count(samples, mel_mode="authors") == 50


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 70 * SAMPLE_RATE), mode=st.sampled_from(["window", "authors"]))
def test_the_count_is_that_of_the_windows_that_the_features_have(samples, mode):
    features = extract_features(np.zeros(samples, np.float32), 80, mode)
    assert audio_token_count(samples, 5, mode) == 5 * len(features)


@pytest.mark.parametrize(("samples", "mode"), [(0, "window"), (-1, "window"), (1, "files")])
def test_nothing_and_an_unknown_mode_cannot_be_counted(samples, mode):
    with pytest.raises(OptionError):
        audio_token_count(samples, mel_mode=mode)


def test_a_placeholder_stands_for_every_token_of_its_recording(processor, clips):
    prompt = processor.build_prompt("transcribe")
    inputs = processor([prompt, prompt], [clips["long"], clips["short"]])
    assert (inputs["input_ids"] == processor.audio_token_id).sum(1).tolist() == [10, 5]
    assert inputs["input_features"].shape == (3, 80, 3000)
    assert inputs["input_features"].dtype == torch.float32


def test_five_minutes_are_ten_windows(make_tokenizer):
    processor = FastSLMProcessor(WhisperFeatureExtractor(feature_size=80), add_tokens(make_tokenizer()))
    inputs = processor(processor.build_prompt("transcribe"), np.zeros(300 * SAMPLE_RATE, np.float32) + 0.01)
    assert len(inputs["input_features"]) == 10
    assert int((inputs["input_ids"] == processor.audio_token_id).sum()) == 500


def test_several_recordings_in_one_prompt_come_in_their_order(processor, clips):
    text = f"first {AUDIO_TOKEN} then {AUDIO_TOKEN}"
    inputs = processor(text, [clips["short"], clips["long"]])
    alone = [processor.features(clips[name]) for name in ("short", "long")]
    assert torch.equal(inputs["input_features"], torch.cat(alone))
    assert processor.expand([text], [1, 2]) == [f"first {AUDIO_TOKEN * 5} then {AUDIO_TOKEN * 10}"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_side_that_is_asked_for(side, processor, clips):
    texts = [processor.build_prompt("ask", question="Who?"), processor.build_prompt("transcribe")]
    inputs = processor(texts, [clips["short"]] * 2, padding_side=side)
    expected = torch.arange(inputs["input_ids"].shape[1]) < int(inputs["attention_mask"][0].sum())
    assert torch.equal(inputs["attention_mask"][0].bool(), expected.flip(0) if side == "left" else expected)
    assert inputs["attention_mask"][1].all()


@pytest.mark.parametrize(("texts", "recordings"), [(1, 0), (0, 1), (1, 2), (2, 1)])
def test_texts_and_recordings_that_differ_in_number_are_refused(texts, recordings, processor, clips):
    with pytest.raises(ValueError, match=f"name {texts} recordings .* {recordings} are given"):
        processor([f"{AUDIO_TOKEN}"] * texts or ["none"], [clips["short"]] * recordings)


def test_arrays_tensors_lists_and_files_are_heard_alike(processor, tmp_path):
    samples = (np.sin(np.arange(24_000) / 20) * 8000).astype(np.int16)
    with wave_file.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    floats = samples.astype(np.float32) / 32768
    expected = processor(AUDIO_TOKEN, floats)["input_features"]
    for audio in (samples, torch.from_numpy(floats), floats.tolist(), str(tmp_path / "a.wav"), [tmp_path / "a.wav"]):
        assert torch.equal(processor(AUDIO_TOKEN, audio)["input_features"], expected)


def test_another_rate_is_resampled(processor):
    assert processor(AUDIO_TOKEN, np.zeros(8000 * 31, np.float32) + 0.1, 8000)["input_features"].shape[0] == 2


def test_a_recording_that_cannot_be_read_is_refused(processor, tmp_path):
    with pytest.raises(AudioError):
        processor(AUDIO_TOKEN, str(tmp_path / "missing.wav"))
    with pytest.raises(AudioError, match="no local file"):
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "audio", "url": "https://example.org/a.wav"}]}]
        )


@pytest.fixture(params=["plain", "system", "first token"])
def templated(request, make_tokenizer):
    tokenizer = make_tokenizer()
    if request.param == "system":
        tokenizer.chat_template = SYSTEM_TEMPLATE
    if request.param == "first token":
        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.chat_template = "{{ bos_token }}" + DEFAULT_CHAT_TEMPLATE
    return FastSLMProcessor(WhisperFeatureExtractor(feature_size=80), add_tokens(tokenizer), tokens_per_window=5)


def test_everything_up_to_the_end_of_the_recording_is_the_same_for_all_tasks_and_questions(templated, clips):
    prompts = [templated.build_prompt(task) for task in ("transcribe", "translate", "summarize")]
    prompts += [templated.build_prompt("translate", language="ko")]
    prompts += [templated.build_prompt("ask", question=question) for question in QUESTIONS]
    splits = [templated.split_prompt(prompt) for prompt in prompts]
    assert len({head for head, _ in splits}) == 1
    assert len({rest for _, rest in splits}) == len(prompts)
    assert all(head + rest == prompt for (head, rest), prompt in zip(splits, prompts, strict=True))
    ids = [templated(prompt, clips["long"])["input_ids"][0].tolist() for prompt in prompts]
    end = templated.tokenizer.convert_tokens_to_ids("<|audio_eos|>")
    assert len({tuple(row[: row.index(end) + 1]) for row in ids}) == 1
    head_ids = templated(splits[0][0], clips["long"])["input_ids"][0].tolist()
    rest_ids = templated(splits[0][1], add_special_tokens=False)["input_ids"][0].tolist()
    assert head_ids + rest_ids == ids[0]


def test_the_first_token_stands_once(templated):
    ids = templated(templated.build_prompt("transcribe"), np.ones(16_000, np.float32) / 9)["input_ids"][0]
    if templated.tokenizer.bos_token is not None:
        assert int((ids == templated.tokenizer.bos_token_id).sum()) == 1


def test_a_conversation_of_parts_is_the_prompt_of_strings(processor, clips):
    parts = [{"type": "audio", "audio": clips["short"]}, {"type": "text", "text": "<|ASR|>\nTranscribe it."}]
    text = "<|audio_bos|><|AUDIO|><|audio_eos|><|ASR|>\nTranscribe it."
    as_parts, as_text = ([{"role": "user", "content": content}] for content in (parts, text))
    options = {"add_generation_prompt": True}
    prompt = processor.apply_chat_template(as_parts, **options)
    assert prompt == processor.apply_chat_template(as_text, **options)
    made = processor.apply_chat_template(as_parts, tokenize=True, **options)
    expected = processor(prompt, clips["short"])
    assert torch.equal(made["input_ids"], expected["input_ids"])
    assert torch.equal(made["input_features"], expected["input_features"])
    batch = processor.apply_chat_template([as_parts, as_parts], tokenize=True, **options)
    assert batch["input_ids"].shape[0] == 2


def test_an_unknown_part_of_a_message_is_refused(processor):
    with pytest.raises(ValueError, match="'image'"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])


def test_the_nine_tokens_are_single_ids_in_the_authors_order(make_tokenizer):
    tokenizer = make_tokenizer()
    before = len(tokenizer)
    add_tokens(tokenizer)
    assert [tokenizer.convert_tokens_to_ids(token) for token in ADDED_TOKENS] == list(range(before, before + 9))
    assert tokenizer("".join(ADDED_TOKENS))["input_ids"] == list(range(before, before + 9))
    assert tokenizer.decode([before, 33], skip_special_tokens=True) == tokenizer.decode([33])
    add_tokens(tokenizer)
    assert len(tokenizer) == before + 9


def test_a_tokenizer_without_padding_or_template_gets_both(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    add_tokens(tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert tokenizer.chat_template == DEFAULT_CHAT_TEMPLATE


def test_only_torch_and_numpy_are_returned(processor):
    assert isinstance(processor("Hello", return_tensors="np")["input_ids"], np.ndarray)
    with pytest.raises(ValueError, match="'pt' or 'np'"):
        processor("Hello", return_tensors="tf")


def test_a_processor_of_unknown_modes_is_refused(make_tokenizer):
    with pytest.raises(OptionError, match="mel_mode 'files'"):
        FastSLMProcessor(WhisperFeatureExtractor(), add_tokens(make_tokenizer()), mel_mode="files")
