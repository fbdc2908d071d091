"""The cascade gives the language model the words that Whisper's decoder writes, and is chosen by name alone."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_fastslm import WIDTH, MakeCheckpoint, noise

from fastslm.errors import OptionError
from fastslm.inference.cascade import Cascade, inputs_of, is_cascade, speech_embeddings
from fastslm.loading import load
from fastslm.model.ctc_head import BLANK, ctc_ids
from fastslm.model.loops import LOOP_TOKENS
from fastslm.model.projectors import FADING


@pytest.fixture(scope="module")
def speech(make_checkpoint: MakeCheckpoint) -> Any:
    """A cascade whose decoder's weights are so large that what it hears decides what it writes."""
    folder = make_checkpoint(reader=True, capabilities={"decoder": "whisper", "via": "transcript", "tasks": None})
    loaded = load(folder, dtype="float32", quiet=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in loaded.model.whisper_decoder.named_parameters():  # type: ignore[union-attr]
            if parameter.dim() == 2 and not name.startswith("unfold.context"):
                parameter.normal_(0.0, 0.4, generator=generator)
    return loaded


@pytest.fixture
def cascade(speech: Any) -> Cascade:
    return Cascade(speech.model, speech.processor)


def some_tokens(windows: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(windows, 50, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_words_are_their_embeddings_in_their_places_each_weaker_than_the_one_before(cascade: Cascade) -> None:
    weight: Any = cascade.model.get_input_embeddings().weight
    short, long = cascade.tokenizer.encode("cat"), cascade.tokenizer.encode("eight le" * 10)
    found = cascade.embed(["cat", "", "eight le" * 10])
    assert found.shape == (3, 50, weight.shape[1])
    torch.testing.assert_close(found[0, :3], weight[short])
    assert not found[0, 3:].any()
    assert not found[1].any()
    # 80 letters in 50 places: two in each of the first 30.
    for place in range(30):
        torch.testing.assert_close(found[2, place], weight[long[2 * place]] + FADING * weight[long[2 * place + 1]])
    torch.testing.assert_close(found[2, 30:], weight[long[60:]])


def test_what_looks_like_a_control_token_is_no_word(cascade: Cascade) -> None:
    assert torch.equal(cascade.embed(["a<|AUDIO|>b"]), cascade.embed(["ab"]))


@torch.no_grad()
def test_the_words_that_are_heard_are_added_to_what_the_projector_makes(
    speech: Any, cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = some_tokens().view(2, 2, 50, WIDTH)
    windows = tokens.flatten(0, 1)
    # The second and the fourth window hold no letter, so nothing that the decoder could invent for them is added.
    heard = torch.full((4, 1), BLANK)
    heard[::2] = ctc_ids("a")[0]
    monkeypatch.setattr(speech.model, "letters", lambda _: torch.nn.functional.one_hot(heard, 29).float())
    texts = cascade.texts(windows, [True, False, True, False])
    assert texts[0]
    assert texts[1] == texts[3] == ""
    expected = speech.model.project(tokens) + cascade.embed(texts).view(2, 2, 50, -1)
    torch.testing.assert_close(speech_embeddings(speech.model, speech.processor, tokens), expected)


def test_a_text_that_loops_ends_there_without_its_copies(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = cascade.decoder
    phrase = decoder.tokenizer.encode("cat", add_special_tokens=False)
    once = [*phrase, decoder.tokenizer.eos_token_id]
    rows: list[int] = []

    def written(hidden: torch.Tensor) -> torch.Tensor:
        step = len(rows)
        rows.append(len(hidden))
        # The first window's text goes on for ever, the second's ends.
        wanted = torch.tensor([phrase[step % len(phrase)], once[min(step, len(phrase))]])
        return torch.nn.functional.one_hot(wanted[: len(hidden)], decoder.decoder.config.vocab_size).float()

    monkeypatch.setattr(decoder, "next_scores", written)
    assert cascade.texts(some_tokens(2), [True, True]) == ["cat", "cat"]
    assert rows[: len(once)] == [2] * len(once)
    assert len(once) < len(rows) < 2 * LOOP_TOKENS


@torch.no_grad()
def test_forward_is_the_one_path_whatever_the_checkpoint_says(speech: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = speech.model, speech.processor
    monkeypatch.setattr(type(model), "whisper_decoder", None)  # no decoder is asked
    batch = processor(processor.build_prompt("transcribe"), noise(1.5))
    tokens = model.get_speech_tokens(batch["input_features"])
    assert torch.equal(model.project(tokens), model.projector(tokens))
    expected = model(input_ids=batch["input_ids"], speech_tokens=model.projector(tokens)).logits
    assert torch.equal(model(**batch).logits, expected)


def test_its_answers_are_those_of_the_words_and_say_so(speech: Any) -> None:
    sound = noise(1.5)
    answer = speech.ask(sound, "Who?", max_new_tokens=5)
    assert answer.usage.reader == "llm, words heard by whisper"
    prompt = speech.processor.build_prompt("ask", question="Who?")
    batch = inputs_of(speech.model, speech.processor, speech.processor(prompt, sound))
    assert batch.keys() == {"input_ids", "attention_mask", "speech_tokens"}
    written = speech.model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert speech.processor.batch_decode(written, skip_special_tokens=True)[0].strip() == answer.text


def test_plain_generate_does_not_pretend_to_hear(speech: Any, tiny: Any) -> None:
    batch = speech.processor(speech.processor.build_prompt("transcribe"), noise(1.5))
    with pytest.raises(ValueError, match=r"answers from transcripts.*fastslm\.load") as caught:
        speech.model.generate(**batch, max_new_tokens=2)
    assert str(caught.value).count(". ") == 0
    assert not is_cascade(tiny.model)
    tiny.model.generate(**batch, max_new_tokens=2)


def test_a_model_that_hears_by_itself_is_asked_by_its_projector(tiny: Any) -> None:
    tokens = some_tokens()
    assert torch.equal(speech_embeddings(tiny.model, tiny.processor, tokens), tiny.model.project(tokens))
    prompt = tiny.processor.build_prompt("transcribe")
    text_alone = tiny.processor("Hello")
    assert inputs_of(tiny.model, tiny.processor, text_alone).keys() == text_alone.keys()
    batch = tiny.processor([prompt] * 2, [noise(1.0), noise(31.0)])
    heard = inputs_of(tiny.model, tiny.processor, batch)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert np.array_equal(tiny.model.generate(**heard, **options), tiny.model.generate(**batch, **options))


def test_without_whispers_decoder_there_is_no_cascade(tiny: Any) -> None:
    with pytest.raises(OptionError, match="needs Whisper's decoder, which this model has not"):
        Cascade(tiny.model, tiny.processor)
