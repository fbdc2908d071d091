"""What a recording will take."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_fastslm import CONTEXT, MakeCheckpoint, noise

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SECONDS
from fastslm.errors import CheckpointError
from fastslm.loading import load
from fastslm.longform.cuts import CUTS, PAUSE_STEPS, SEARCH_SAMPLES, STEP_SAMPLES, Cuts, cut
from fastslm.longform.plan import OTHER_POSITIONS, empty_model, kv_bytes, most_windows, plan
from fastslm.model.capabilities import Capabilities
from fastslm.speech import FastSLM

RECORDING = noise(150, 3)
PAUSE = PAUSE_STEPS * STEP_SAMPLES
# Samples of a window that is cut at the first place where a pause can be.
SHORTEST = WINDOW_SAMPLES - SEARCH_SAMPLES + PAUSE // 2


def _quiet_windows(samples: int, every: int) -> int:
    """Windows of a recording that is cut in its pauses, one every so many samples."""
    recording = RECORDING[:samples].copy()
    for middle in range(every, samples, every):
        recording[middle - PAUSE // 2 : middle + PAUSE // 2] = 0
    return sum(1 for _ in cut(np.split(recording, range(160_000, samples, 160_000)), "quiet"))


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


@settings(max_examples=25, deadline=None)
@given(
    # Any, and such as just need one more cut.
    samples=st.integers(1, len(RECORDING))
    | st.builds(
        lambda cuts, more: WINDOW_SAMPLES + cuts * SHORTEST + more, st.integers(0, 4), st.integers(1, SAMPLE_RATE)
    ),
    every=st.integers(SHORTEST, WINDOW_SAMPLES) | st.just(SHORTEST),
)
def test_quiet_cuts_never_make_more_windows_than_planned(samples: int, every: int) -> None:
    assert _quiet_windows(samples, every) <= most_windows(samples / SAMPLE_RATE, "quiet")


@pytest.mark.parametrize("cuts_made", range(4))
def test_with_every_pause_as_early_as_it_can_be_there_are_as_many_windows_as_planned(cuts_made: int) -> None:
    longest = WINDOW_SAMPLES + max(0, cuts_made - 1) * SHORTEST  # that needs no more cuts, but the last
    samples = longest + (160 if cuts_made else 0)
    assert _quiet_windows(samples, SHORTEST) == most_windows(samples / SAMPLE_RATE, "quiet") == cuts_made + 1


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


def test_the_parts_that_compute_in_another_type_are_counted_as_they_lie_in_memory(
    make_checkpoint: MakeCheckpoint,
) -> None:
    loaded = load(make_checkpoint(reader=True, transcript_reader="whisper"), device="cpu", dtype="float32", quiet=True)
    speech = FastSLM(loaded.model, loaded.processor, encoder_dtype=torch.bfloat16)
    assert speech.model.reader is not None
    speech.model.reader.read_in(torch.bfloat16)
    made, copies = speech.encode(noise(1)), speech.encoder._narrow
    modules = (speech.model, copies.encoder, copies.hfq_former, speech.model.reader.reading)
    planned = plan(speech.model, 1, encoder_dtype=torch.bfloat16)
    held = sum(parameter.nbytes for module in modules for parameter in module.parameters())
    assert planned.weight_bytes == held
    assert planned.memory_file_bytes == made.tokens.nbytes


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


def test_a_plan_says_what_is_read_in_parts_though_one_prompt_holds_it(tiny: FastSLM, monkeypatch) -> None:
    assert plan(tiny.model, 600).reasons == ()
    monkeypatch.setattr(tiny.model.config, "capabilities", Capabilities(taught_seconds={"ask": 300.0}))
    assert "ask: parts of 5:00 of what is longer" in plan(tiny.model, 600).table()


def test_a_recording_of_unknown_length_still_has_its_models_sizes(tiny: FastSLM) -> None:
    unknown = plan(tiny.model, None)
    assert (unknown.windows, unknown.kv_bytes) == (None, None)
    assert unknown.total_bytes > 0
    assert "unknown length" in unknown.line()


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="give a checkpoint's folder"):
        empty_model(tmp_path)
