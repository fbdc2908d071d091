"""transformers' pipelines and Auto classes: each way in transcribes or answers, or says what to use."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tiny_fastslm import make_checkpoint, noise, tiny, tiny_checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline

from fastslm.errors import AudioError, OptionError
from fastslm.loading import load
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.speech import FastSLM

__all__ = ["make_checkpoint", "tiny", "tiny_checkpoint"]
pytestmark = pytest.mark.fault
ON_CPU: Any = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def folders(tiny: FastSLM, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in both forms of a checkpoint."""
    whole = tmp_path_factory.mktemp("whole")
    tiny.model.save_pretrained(whole)
    tiny.processor.save_pretrained(whole)
    return {"trained": tiny_checkpoint, "whole": whole}


@pytest.fixture(scope="module")
def read(tiny_checkpoint: Path) -> Any:
    return pipeline("automatic-speech-recognition", model=str(tiny_checkpoint), **ON_CPU)


@pytest.mark.parametrize("form", ["trained", "whole"])
def test_speech_recognition_gives_the_transcript_of_a_recording_of_any_length(form, folders, tiny) -> None:
    read = pipeline("automatic-speech-recognition", model=str(folders[form]), **ON_CPU)
    for seconds in (2.0, 31.0, 61.5):
        transcript = tiny.transcribe(noise(seconds))
        assert transcript.text
        assert read(noise(seconds)) == {"text": transcript.text}


def test_every_way_to_name_a_recording_gives_the_same_text(read, tiny, encode, tmp_path) -> None:
    clip = noise(2.0)
    file = encode(tmp_path / "clip.flac", clip, codec="flac")
    text = tiny.transcribe(file).text
    for source in (str(file), file, file.read_bytes(), {"path": str(file)}):
        assert read(source)["text"] == text
    text = tiny.transcribe(clip).text
    assert read(torch.from_numpy(clip))["text"] == read({"raw": clip, "sampling_rate": 16_000})["text"] == text
    assert read(tiny.encode(clip))["text"] == text
    slow = tiny.transcribe(clip, sampling_rate=8_000).text
    decoded = SimpleNamespace(data=torch.from_numpy(clip)[None], sample_rate=8_000)
    assert read(SimpleNamespace(get_all_samples=lambda: decoded))["text"] == slow
    assert read({"array": clip, "sampling_rate": 8_000, "path": "elsewhere.wav"})["text"] == slow != text


def test_lists_and_iterators_are_read_in_their_order(read, tiny) -> None:
    clips = [noise(seconds, index) for index, seconds in enumerate((3.0, 31.0, 0.4, 12.0))]
    texts = [tiny.transcribe(clip).text for clip in clips]
    assert [result["text"] for result in read(clips)] == texts
    assert [result["text"] for result in read(clips, batch_size=2)] == texts
    results = read(clip for clip in clips)
    assert next(results)["text"] == texts[0]
    assert [result["text"] for result in results] == texts[1:]
    assert read([]) == []


def test_times_are_those_of_windows_or_of_words(read, tiny) -> None:
    transcript = tiny.transcribe(noise(41.0), cuts="fixed")
    windows = read(noise(41.0), return_timestamps=True)["chunks"]
    assert windows == [{"text": own.text, "timestamp": (own.start, own.end)} for own in transcript.segments]
    words = read(noise(41.0), return_timestamps="word")["chunks"]
    assert [(word["text"], word["timestamp"]) for word in words] == [
        (word.text, (word.start, word.end)) for segment in transcript.segments for word in segment.words
    ]


def test_options_of_transcribe_are_options_of_the_pipeline(tiny_checkpoint: Path, tiny: FastSLM, read) -> None:
    clip, options = noise(3.0), {"reader": "llm", "max_new_tokens": 7, "repetition": "keep"}
    text = tiny.transcribe(clip, **options).text  # type: ignore[arg-type]
    assert read(clip, **options)["text"] == text
    told = {"max_new_tokens": 7, "language": "english", "task": "transcribe"}
    assert read(clip, reader="llm", repetition="keep", generate_kwargs=told)["text"] == text
    made = pipeline("automatic-speech-recognition", model=str(tiny_checkpoint), batch_size=4, **options, **ON_CPU)
    assert made(clip)["text"] == text
    shorter = tiny.transcribe(clip, **{**options, "max_new_tokens": 3}).text  # type: ignore[arg-type]
    assert made(clip, max_new_tokens=3)["text"] == shorter != text
    assert "cut" in " ".join(made(clip)["warnings"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunk_length_s": 10}, "windows of 30 s"),
        ({"stride_length_s": 5}, "does not know stride_length_s"),
        ({"return_timestamps": "char"}, "choose True"),
        ({"generate_kwargs": {"num_beams": 5}}, "does not know num_beams"),
        ({"generate_kwargs": {"task": "translate"}}, "translate"),
        ({"language": "fr"}, "French"),
        ({"reader": "wisper"}, "whisper"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(options, said, read, tiny_checkpoint) -> None:
    with pytest.raises(OptionError, match=said):
        read(noise(1.0), **options)
    with pytest.raises(OptionError, match=said):
        pipeline("automatic-speech-recognition", model=str(tiny_checkpoint), **options, **ON_CPU)(noise(1.0))


def test_recordings_that_are_none_are_refused_in_a_sentence(read) -> None:
    with pytest.raises(AudioError):
        read("missing.wav")
    with pytest.raises(AudioError):
        read(b"no sound")
    with pytest.raises(OptionError, match="give raw or array"):
        read({"samples": noise(1.0)})


def test_a_loaded_model_is_taken_with_its_parts_and_with_an_adapter_on_top(tiny: FastSLM, tiny_checkpoint) -> None:
    parts: Any = {"tokenizer": tiny.processor.tokenizer, "feature_extractor": tiny.processor.feature_extractor}
    clip = noise(2.0)
    options: Any = {"reader": "llm", "max_new_tokens": 9, "repetition": "keep"}
    text = tiny.transcribe(clip, **options).text
    read = pipeline("automatic-speech-recognition", model=tiny.model, device="cpu", **parts, **options)
    assert read(clip)["text"] == text
    model = FastSLMForConditionalGeneration.from_pretrained(tiny_checkpoint)
    adapted: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.mul_(50)
    read = pipeline("automatic-speech-recognition", model=adapted, device="cpu", **parts, **options)
    assert read(clip)["text"] != text


def test_a_pipeline_is_saved_as_a_folder_that_opens_again(read, tmp_path: Path) -> None:
    read.save_pretrained(tmp_path / "saved")
    again = pipeline("automatic-speech-recognition", model=str(tmp_path / "saved"), **ON_CPU)
    assert again(noise(2.0)) == read(noise(2.0))
    assert (
        load(tmp_path / "saved", dtype="float32", quiet=True).transcribe(noise(2.0)).text == again(noise(2.0))["text"]
    )


def test_other_models_keep_transformers_own_pipeline(tiny: FastSLM) -> None:
    whisper = WhisperForConditionalGeneration(tiny.model.config.audio_config)
    parts: Any = {"tokenizer": tiny.processor.tokenizer, "feature_extractor": WhisperFeatureExtractor()}
    made = pipeline("automatic-speech-recognition", model=whisper, device="cpu", **parts)
    assert type(made) is AutomaticSpeechRecognitionPipeline
    assert made.type == "seq2seq_whisper"


@pytest.mark.parametrize("task", ["any-to-any", "audio-text-to-text"])
@pytest.mark.parametrize("form", ["trained", "whole"])
def test_a_chat_with_audio_is_answered(task, form, folders, tiny, encode, tmp_path, caplog) -> None:
    file = encode(tmp_path / "clip.flac", noise(31.0), codec="flac")
    answer = pipeline(task, model=str(folders[form]), **ON_CPU)
    written = []
    for audio in ({"path": str(file)}, {"audio": str(file)}, {"url": str(file)}):
        content = [{"type": "audio", **audio}, {"type": "text", "text": "Who is it?"}]
        chat = [{"role": "user", "content": content}]
        (result,) = answer(text=chat, max_new_tokens=7, return_full_text=False)
        written.append(result["generated_text"])
        (result,) = answer(text=chat, max_new_tokens=7)
        assert result["generated_text"] == [*chat, {"role": "assistant", "content": written[-1]}]
    inputs: Any = tiny.processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    ids = tiny.model.generate(**inputs, max_new_tokens=7, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert {text.strip() for text in written} == {
        tiny.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    }
    (result,) = answer(text="<|AUDIO|> Who?", audio=noise(2.0), max_new_tokens=5, return_full_text=False)
    assert result["generated_text"]
    assert "not supported" not in caplog.text


def test_pictures_are_refused_in_a_sentence(tiny: FastSLM) -> None:
    with pytest.raises(OptionError, match="only hears"):
        tiny.processor("What is it?", images=[np.zeros((2, 2, 3))])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "auto", [AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoModelForSeq2SeqLM]
)
@pytest.mark.parametrize("form", ["trained", "whole"])
def test_each_auto_class_works_from_the_folder_to_the_text(auto, form, folders, tiny) -> None:
    model = auto.from_pretrained(folders[form])
    processor: Any = AutoProcessor.from_pretrained(folders[form])
    assert isinstance(model, FastSLMForConditionalGeneration)
    assert isinstance(processor, FastSLMProcessor)
    assert isinstance(AutoConfig.from_pretrained(folders[form]), FastSLMConfig)
    assert AutoTokenizer.from_pretrained(folders[form]).get_vocab() == processor.tokenizer.get_vocab()
    inputs = processor(processor.build_prompt("transcribe"), noise(2.0))
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(written, tiny.model.generate(**inputs, max_new_tokens=8, do_sample=False))
    assert processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert isinstance(auto.from_config(model.config), FastSLMForConditionalGeneration)
