"""What a recording will take."""

import pytest
import torch
from tiny_fastslm import CONTEXT, noise

from fastslm.audio import WINDOW_SECONDS
from fastslm.errors import CheckpointError
from fastslm.longform.cuts import CUTS, Cuts
from fastslm.longform.plan import OTHER_POSITIONS, empty_model, kv_bytes, plan
from fastslm.speech import FastSLM


@pytest.mark.parametrize("seconds", [0.5, 30.0, 30.01, 300, 61.7])
def test_windows_and_tokens_are_those_that_the_encoder_makes(tiny: FastSLM, seconds: float) -> None:
    planned, made = plan(tiny.model, seconds), tiny.encode(noise(seconds))
    assert (planned.windows, planned.audio_tokens) == (len(made.tokens), made.audio_tokens)
    assert planned.memory_file_bytes == made.tokens.nbytes


@pytest.mark.parametrize("cuts", CUTS)
def test_no_cuts_make_more_windows_than_planned(tiny: FastSLM, cuts: Cuts) -> None:
    recording = noise(130)
    for second in (25, 51, 77, 103):  # pauses as early as they can be
        recording[second * 16_000 + 4000 : second * 16_000 + 12_000] = 0
    windows = plan(tiny.model, 130, cuts=cuts).windows
    assert windows is not None
    assert len(tiny.encoder.encode(recording, cuts=cuts).tokens) <= windows


def test_the_kv_cache_is_what_the_language_model_fills(tiny: FastSLM) -> None:
    ids = torch.zeros(1, 77, dtype=torch.long)
    cache = tiny.model(ids, use_cache=True).past_key_values
    filled = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_bytes(tiny.model, 77, torch.float32) == filled


def test_weights_are_counted_without_loading_them(tiny: FastSLM, tiny_checkpoint) -> None:
    empty = empty_model(tiny_checkpoint)
    assert empty.device.type == "meta"
    loaded = sum(parameter.nbytes for parameter in tiny.model.parameters())
    assert plan(empty, 60, dtype=torch.float32).weight_bytes == loaded
    assert plan(empty, 60, dtype=torch.bfloat16).weight_bytes == loaded // 2


def test_the_longest_recording_fits_one_prompt_and_a_longer_one_does_not(tiny: FastSLM) -> None:
    longest = plan(tiny.model, None).longest_seconds
    assert longest is not None
    needed = longest / WINDOW_SECONDS * 50 + OTHER_POSITIONS
    assert CONTEXT - 50 < needed <= CONTEXT
    assert plan(tiny.model, longest).fits_prompt
    assert not plan(tiny.model, longest + 1).fits_prompt
    # A memory of no more seconds may hold more windows.
    assert not plan(tiny.model, longest, windows=int(longest / WINDOW_SECONDS) + 1).fits_prompt
    # Beyond it, the cache of a prompt grows no more.
    assert plan(tiny.model, 100 * longest).kv_bytes == plan(tiny.model, longest).kv_bytes


def test_a_recording_of_unknown_length_still_has_its_models_sizes(tiny: FastSLM) -> None:
    unknown = plan(tiny.model, None)
    assert (unknown.windows, unknown.kv_bytes) == (None, None)
    assert unknown.total_bytes > 0
    assert "unknown length" in unknown.line()


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="give a checkpoint's folder"):
        empty_model(tmp_path)
