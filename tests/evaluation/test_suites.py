"""What each suite asks and how it scores, with a system that answers by rote."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rote_system import Rote
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from tiny_fastslm import noise

from fastslm.errors import ManifestError
from fastslm.evaluation.suite import evaluate, read_requests
from fastslm.evaluation.suites import SUITES
from fastslm.evaluation.suites.silence import count_words
from fastslm.evaluation.suites.sqqa import QuestionAnswering
from fastslm.evaluation.systems import FastSLMSystem, Heard
from fastslm.loading import load
from fastslm.longform.encoder import WindowEncoder
from fastslm.longform.memory import SpeechMemory
from fastslm.speech import FastSLM

TEXTS = [{"text": "green apples fall"}, {"text": "softly they fall"}]
ORDERS: list[dict[str, Any]] = [
    {
        "audio": f"{4 * order}.wav",
        "task": "ask",
        "instruction": f"Which {kind} is ordered?",
        "answer": said.get(kind, "not mentioned"),
        "kind": kind,
    }
    for order, said in enumerate(
        (
            {"fruit": "pear", "size": "large"},
            {"fruit": "plum", "colour": "dark blue", "number": "two dozen"},
        )
    )
    for kind in ("fruit", "size", "colour", "number")
]


def test_a_perfect_transcript_has_no_errors(make_manifest: Callable[..., Path]) -> None:
    found = evaluate(SUITES["asr"], Rote("Green apples fall.", "Softly, they fall."), make_manifest(*TEXTS))
    assert (found["wer"], found["cer"], found["words"], found["clips"]) == (0, 0, 6, 2)
    assert found["seconds"] == 3.0


def test_transcripts_in_the_wrong_order_are_caught(make_manifest: Callable[..., Path]) -> None:
    found = evaluate(SUITES["asr"], Rote("softly they fall", "green apples fall"), make_manifest(*TEXTS))
    assert found["wer"] > 0.5


def test_a_clip_without_text_has_no_word_error(make_manifest: Callable[..., Path]) -> None:
    with pytest.raises(ManifestError, match="line 1: 0 has no text"):
        read_requests(SUITES["asr"], make_manifest({}))


def test_any_written_word_breaks_the_silence_and_marks_alone_do_not(make_manifest: Callable[..., Path]) -> None:
    found = evaluate(SUITES["silence"], Rote("...", "uh, (music) 5"), make_manifest({"label": "a"}, {"label": "b"}))
    assert (found["no_words"], found["no_words_samples"]) == (0.5, 2)
    assert found["words_per_minute"] == pytest.approx(3 / 0.05)
    assert (found["by_label"]["a"]["no_words"], found["by_label"]["b"]["no_words"]) == (1, 0)
    assert count_words("♪ ♪ — a1, b") == 2


def test_clips_with_speech_are_no_silence(make_manifest: Callable[..., Path]) -> None:
    with pytest.raises(ManifestError, match="0 has a text"):
        read_requests(SUITES["silence"], make_manifest({"text": "hello"}))


def test_answers_that_are_there_and_answers_that_are_not_are_scored_apart(make_manifest: Callable[..., Path]) -> None:
    said = ["A pear.", "large size", "not mentioned", "light blue", "plum", "small", "Not mentioned.", "two dozen"]
    found = evaluate(SUITES["sqqa"], Rote(*said), make_manifest(*ORDERS))
    assert (found["exact_match"], found["exact_match_samples"]) == (0.6, 5)
    assert found["token_f1"] == pytest.approx((1 + 2 / 3 + 1 + 0 + 1) / 5, abs=1e-5)
    assert (found["not_mentioned"], found["not_mentioned_samples"]) == (pytest.approx(1 / 3, abs=1e-5), 3)
    assert found["missed"] == 0.2
    assert found["by_kind"]["fruit"]["exact_match"] == 1
    assert found["by_kind"]["fruit"]["not_mentioned"] is None
    assert found["questions"] == 8


def test_always_not_mentioned_is_perfect_there_and_nothing_elsewhere(make_manifest: Callable[..., Path]) -> None:
    found = evaluate(SUITES["sqqa"], Rote(*["not mentioned"] * 8), make_manifest(*ORDERS))
    assert (found["not_mentioned"], found["missed"], found["exact_match"], found["token_f1"]) == (1, 1, 0, 0)


def test_questions_of_one_kind_can_be_asked_alone(make_manifest: Callable[..., Path]) -> None:
    system = Rote("no", "no")
    evaluate(QuestionAnswering(["size"]), system, make_manifest(*ORDERS))
    assert [request["question"] for request in system.asked] == ["Which size is ordered?"] * 2
    with pytest.raises(ManifestError, match="no clip has the task ask, or what is asked for of it"):
        read_requests(QuestionAnswering(["milk"]), make_manifest(*ORDERS))


def test_a_row_brings_its_own_question(make_manifest: Callable[..., Path]) -> None:
    system = Rote("Anna", "Ben")
    rows = [
        {"task": "ask", "instruction": f"Who speaks {when}?", "answer": "Anna", "kind": when}
        for when in ("first", "last")
    ]
    found = evaluate(SUITES["sqqa"], system, make_manifest(*rows))
    assert system.asked == [{"question": "Who speaks first?"}, {"question": "Who speaks last?"}]
    assert (found["exact_match"], found["by_kind"]["first"]["exact_match"]) == (0.5, 1)
    with pytest.raises(ManifestError, match="has no instruction with its answer; make questions"):
        read_requests(SUITES["sqqa"], make_manifest({"text": "hello"}))


def test_bleu_is_sacrebleus_of_the_corpus_with_its_signature(make_manifest: Callable[..., Path]) -> None:
    right = ["Der Hund schläft in der warmen Sonne.", "Wir gehen morgen früh nach Hause."]
    said = ["Der Hund schläft in der Sonne.", "Wir gehen heute früh nach Hause."]
    rows = [{"translation": text, "target_language": "German"} for text in right]
    system = Rote(*said)
    found = evaluate(SUITES["ast"], system, make_manifest(*rows))
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(said, [right]).score, abs=1e-5)
    assert "tok:13a" in found["scorer"]
    assert "nrefs:1" in found["scorer"]
    assert system.asked == [{"to": "de"}] * 2


def test_bleu_of_korean_is_of_characters_and_of_two_languages_is_refused(make_manifest: Callable[..., Path]) -> None:
    row = {"task": "translate", "instruction": "Translate."}
    korean = {**row, "answer": "사과가 떨어진다", "target_language": "Korean"}
    found = evaluate(SUITES["ast"], Rote("사과가 떨어졌다"), make_manifest(korean))
    assert "tok:char" in found["scorer"]
    assert 0 < found["bleu"] < 100
    german = {**row, "answer": "Äpfel fallen", "target_language": "de"}
    with pytest.raises(ManifestError, match="into de, ko, but BLEU is of one language"):
        evaluate(SUITES["ast"], Rote("a", "b"), make_manifest(korean, german))
    with pytest.raises(ManifestError, match=r"no translation \(or answer\) with its target_language"):
        read_requests(SUITES["ast"], make_manifest({"translation": "Äpfel fallen"}))
    with pytest.raises(ManifestError, match="did you mean 'german'"):
        read_requests(SUITES["ast"], make_manifest({"translation": "Äpfel fallen", "target_language": "Germn"}))


def test_rouge_l_is_the_mean_of_rouge_scores_own(make_manifest: Callable[..., Path]) -> None:
    right, said = ["The dogs were sleeping.", "We go home."], ["A dog sleeps.", "We run home."]
    found = evaluate(SUITES["ssum"], Rote(*said), make_manifest(*({"summary": text} for text in right)))
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    each = [scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(right, said, strict=True)]
    assert found["rouge_l"] == pytest.approx(sum(each) / 2, abs=1e-5)
    assert found["normalizer"] is None


def test_rouge_l_knows_letters_beyond_a_to_z(make_manifest: Callable[..., Path]) -> None:
    found = evaluate(
        SUITES["ssum"], Rote("사과가 떨어진다."), make_manifest({"summary": "사과가 떨어진다", "language": "ko"})
    )
    assert found["rouge_l"] == 1
    assert "BasicTextNormalizer" in found["normalizer"]


def test_fastslm_is_measured_on_the_texts_that_each_clip_alone_gives(
    make_manifest: Callable[..., Path], tiny: FastSLM
) -> None:
    requests = read_requests(SUITES["asr"], make_manifest(*TEXTS))
    rows: list[str] = []
    evaluate(SUITES["asr"], _Listening(FastSLMSystem(tiny), rows), make_manifest(*TEXTS))
    assert rows == [tiny.transcribe(clip.audio_file()).text for clip, _ in requests]


@pytest.fixture
def prompted(tiny: FastSLM, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the model was told, prompt after prompt: a random one says much the same whatever it is asked."""
    told: list[dict[str, Any]] = []
    build = tiny.processor.build_prompt

    def spy(task: str, **options: Any) -> str:
        told.append({"task": task, **options})
        return build(task, **options)

    monkeypatch.setattr(tiny.processor, "build_prompt", spy)
    return told


def test_fastslm_answers_each_question_as_ask_does(
    make_manifest: Callable[..., Path], tiny: FastSLM, prompted: list[dict[str, Any]]
) -> None:
    manifest = make_manifest(*ORDERS)
    rows: list[str] = []
    suite = QuestionAnswering(["size", "fruit"])
    found = evaluate(suite, _Listening(FastSLMSystem(tiny, max_new_tokens=3), rows), manifest)
    asked = list(dict.fromkeys((told["task"], told["question"]) for told in prompted))
    assert asked == [("ask", f"Which {kind} is ordered?") for kind in ("fruit", "size")]
    expected = [
        tiny.ask(clip.audio_file(), row["request"]["question"], max_new_tokens=3).text
        for clip, requests in read_requests(suite, manifest)
        for row in requests
    ]
    assert rows == expected
    assert (found["reader"], found["max_new_tokens"]) == ("llm", 3)
    assert (found["dtype"], found["encoder_dtype"]) == ("float32", "float32")


def test_the_facts_say_what_hears_for_the_language_model_and_how_it_computes(
    make_checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(make_checkpoint(reader=True, transcript_reader="whisper"), dtype="float32", quiet=True)
    model.encoder = WindowEncoder(model.model, dtype=torch.bfloat16)
    able = replace(model.model.config.capabilities, via="transcript")
    monkeypatch.setattr(model.model.config, "capabilities", able)
    facts = FastSLMSystem(model).facts("ask")
    assert (facts["reader"], facts["encoder_dtype"]) == ("llm, words heard by whisper", "bfloat16")
    assert FastSLMSystem(model).facts("transcribe")["reader"] == "whisper"


def test_fastslm_follows_a_rows_instruction_and_its_language(
    make_manifest: Callable[..., Path], tiny: FastSLM, prompted: list[dict[str, Any]]
) -> None:
    system = FastSLMSystem(tiny, max_new_tokens=3)
    words = {"task": "summarize", "instruction": "Name three words.", "answer": "apple", "kind": "keywords"}
    found = evaluate(SUITES["ssum"], system, make_manifest(words))
    assert {told["instruction"] for told in prompted} == {"Name three words."}
    assert list(found["by_kind"]) == ["keywords"]
    prompted.clear()
    evaluate(SUITES["ast"], system, make_manifest({"translation": "Äpfel fallen.", "target_language": "German"}))
    assert {told["language"] for told in prompted} == {"de"}


def test_recordings_are_cut_as_the_tasks_cut_them(make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(make_checkpoint(reader=True, transcript_reader="whisper"), dtype="float32", quiet=True)
    recording = noise(65)
    recording[27 * 16_000 : 28 * 16_000] *= 0.01
    memories: list[SpeechMemory] = []
    system = FastSLMSystem(model, max_new_tokens=3)
    monkeypatch.setattr(
        system, "_answer", lambda task, memory, request: memories.append(memory) or model.ask(memory, "?")
    )
    list(system.reply("ask", [Heard(recording)]))
    assert memories[0].times.tolist() == model.encode(recording).times.tolist()
    assert 27 < memories[0].times[0, 1] < 28


class _Listening(FastSLMSystem):
    """Notes what a system says."""

    def __init__(self, system: FastSLMSystem, texts: list[str]):
        super().__init__(system.model, system.decoder, system.max_new_tokens)
        self.texts = texts

    def reply(self, task, recordings):
        for replies in super().reply(task, recordings):
            self.texts += [reply.text for reply in replies]
            yield replies
