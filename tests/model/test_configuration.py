"""Sizes and switches: what is refused, and what a round trip keeps."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, Qwen3Config

from fastslm.model.capabilities import Capabilities
from fastslm.model.configuration import FastSLMConfig, HFQFormerConfig


def test_the_defaults_are_the_papers():
    config = HFQFormerConfig()
    assert (config.hidden_size, config.num_heads, config.scale_lengths) == (1280, 20, (1500, 750, 375))
    assert (config.stage_tokens, config.final_tokens, config.detail_blocks) == ([80, 80, 80], 50, 2)
    assert (config.query_start, config.detail_start, config.detail_positions) == ("random", "random", False)
    assert config.attention_span is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"hidden_size": 100}, "100"),
        ({"hidden_size": 0}, "0"),
        ({"stage_tokens": [80, 80]}, "three stages"),
        ({"stage_tokens": [80, 0, 80]}, "at least 1"),
        ({"final_tokens": 0}, "at least 1"),
        ({"window_frames": 1498}, "1498"),
        ({"detail_blocks": -1}, "-1"),
        ({"query_start": "tim"}, "'tim'"),
        ({"detail_start": "positional"}, "detail_positions"),
        ({"attention_span": -1}, "-1"),
    ],
)
def test_an_impossible_size_is_refused_with_its_value(wrong, named):
    with pytest.raises(ValueError, match=named):
        HFQFormerConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"mel_mode": "windows"}, {"prompt_layout": "audio"}])
def test_an_unknown_mode_is_refused(wrong):
    with pytest.raises(ValueError, match="must be one of"):
        FastSLMConfig(**wrong)


@pytest.mark.parametrize(("decoder", "needs"), [("ctc", "ctc_head"), ("whisper", "Whisper's decoder")])
def test_a_best_decoder_that_is_not_there_is_refused(decoder, needs):
    with pytest.raises(ValueError, match=f"{decoder}' needs {needs}"):
        FastSLMConfig(capabilities={"decoder": decoder})


@pytest.mark.parametrize("taught", [{"transcribe": 60}, {"ask": 20}, {"ask": "60"}, {"ask": float("inf")}, 60, [60]])
def test_a_taught_length_that_cannot_be_is_refused(taught):
    with pytest.raises(ValueError, match=r"taught_seconds (has|is)"):
        FastSLMConfig(capabilities={"taught_seconds": taught})


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"language": ["en"]}, "'language', did you mean 'languages'"),
        ({"languages": []}, "languages is empty"),
        ({"decoder": "lm"}, "decoder is 'lm'; it must be null or one of ctc, whisper, llm"),
        ({"via": "text"}, "via is 'text'; it must be one of speech, transcript"),
    ],
)
def test_a_capability_that_cannot_be_is_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        FastSLMConfig(capabilities=wrong)


# What config.json of fastslm-tiny held until its fourth edition, beside the sizes.
OLD: dict[str, Any] = {
    "ctc_head": True,
    "ctc_reads": "frames",
    "heard_words": True,
    "languages": ["en", "de"],
    "llm_reads_speech": True,
    "llm_tasks": ["ask", "translate"],
    "reader_base": "whisper-tiny.en",
    "reader_layers": 2,
    "reader_lora_alpha": 12,
    "reader_lora_rank": 8,
    "taught_seconds": {"translate": 30.0},
    "taught_with": {"translate": "captions"},
    "transcript_reader": "whisper",
    "translates_into": ["fr"],
    "words_base": "smollm2-135m-instruct",
}


def test_keys_of_older_configurations_are_read_under_todays_names(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fastslm", **OLD}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.capabilities == Capabilities(
        languages=("en", "de"),
        decoder="whisper",
        via="transcript",
        tasks=("ask", "translate"),
        translates_into=("fr",),
        taught_with={"translate": "captions"},
        taught_seconds={"translate": 30.0},
    )
    assert (config.whisper_decoder, config.base_decoder, config.unfolder_layers) == (True, "whisper-tiny.en", 2)
    assert (config.decoder_lora_rank, config.decoder_lora_alpha) == (8, 12)
    new = set(OLD) - {"ctc_head", "ctc_reads"}
    assert not new & config.to_dict().keys(), "what is saved again has the old keys still"
    config.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").capabilities == config.capabilities


@pytest.mark.parametrize(
    ("old", "tasks"),
    [
        ({}, ()),
        ({"llm_reads_speech": False, "llm_tasks": ["ask"]}, ()),
        ({"llm_reads_speech": True}, None),
        ({"llm_reads_speech": True, "llm_tasks": ["ask"]}, ("ask",)),
    ],
)
def test_an_older_model_has_learnt_the_tasks_that_it_said(old, tasks):
    assert FastSLMConfig(**old).capabilities.tasks == tasks
    assert FastSLMConfig(**old).capabilities.via == "speech"


def test_a_former_of_another_width_than_the_encoder_is_refused():
    with pytest.raises(ValueError, match="must be equal"):
        FastSLMConfig(audio_config={"d_model": 384}, hfq_config={"hidden_size": 512})


def test_saving_and_loading_keeps_every_value_and_the_kind_of_text_model(make_config, tmp_path):
    config = make_config(
        "qwen3",
        lora_rank=3,
        mel_mode="authors",
        capabilities={"taught_seconds": {"ask": 60.0}, "translates_into": ["fr", "ko"]},
        hfq={"query_start": "time", "attention_span": 2},
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, FastSLMConfig)
    assert isinstance(loaded.text_config, Qwen3Config)
    where = {"_name_or_path": None, "transformers_version": None}
    assert loaded.to_dict() | where == config.to_dict() | where
    assert (loaded.lora_rank, loaded.mel_mode, loaded.hfq_config.attention_span) == (3, "authors", 2)
