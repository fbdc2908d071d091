"""The four tasks: their tokens, their default phrasings, and the two layouts of a user turn.

    task_first   <|ASR|><|audio_bos|><|AUDIO|><|audio_eos|>⏎Transcribe the audio clip into text.      (the authors')
    audio_first  <|audio_bos|><|AUDIO|><|audio_eos|><|ASR|>⏎Transcribe the audio clip into text.      (ours)

In `audio_first` everything up to and including `<|audio_eos|>` is the same for every task and question, so one KV cache
of a recording serves them all.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER_LANGUAGES
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from fastslm.errors import OptionError

PROMPT_LAYOUTS = ("audio_first", "task_first")
AUDIO_TOKEN = "<|AUDIO|>"
AUDIO_BEGIN = "<|audio_bos|>"
AUDIO_END = "<|audio_eos|>"
AUDIO_SPAN = f"{AUDIO_BEGIN}{AUDIO_TOKEN}{AUDIO_END}"
# Tokens of the authors' vocabulary that none of their published prompts uses; their ids must stay where they are.
LANGUAGE_TOKENS = ("<|EN|>", "<|KO|>")
CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]+\|>")


@dataclass(frozen=True)
class Task:
    """One task: its name here, its token, and how it is asked for where the caller does not say."""

    name: str
    token: str
    phrasing: str | None  # None: the caller's question is the phrasing


TASKS = {
    task.name: task
    for task in (
        Task("transcribe", "<|ASR|>", "Transcribe the audio clip into text."),
        Task("translate", "<|AST|>", "Translate the audio clip into {language}."),
        Task("summarize", "<|SSUM|>", "Summarize the audio clip."),
        Task("ask", "<|SQQA|>", None),
    )
}
TASK_TOKENS = tuple(task.token for task in TASKS.values())
# In the order in which the authors add them: their checkpoint's ids depend on it.
ADDED_TOKENS = (AUDIO_TOKEN, AUDIO_BEGIN, AUDIO_END, *LANGUAGE_TOKENS, *TASK_TOKENS)
# Code → English name. FastSLM was published for English and Korean; the others are names for the phrasing.
LANGUAGES = {code: name.title() for code, name in WHISPER_LANGUAGES.items()}
DEFAULT_LANGUAGE = "en"
# The answer to a question about what a recording does not say: it is taught, scored, and looked for in spans' answers.
NOT_MENTIONED = "not mentioned"


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        OptionError: there is none; the nearest is named.
    """
    if name in TASKS:
        return TASKS[name]
    raise OptionError(f"There is no task {name!r}{_nearest(name, TASKS)}: choose one of {', '.join(TASKS)}.")


def language_name(language: str) -> str:
    """English name of a language given by its code ("ko") or name ("Korean"), in any case.

    Raises:
        OptionError: it is unknown; the nearest is named.
    """
    given = language.strip().lower()
    code = given if given in LANGUAGES else TO_LANGUAGE_CODE.get(given)
    if code is not None:
        return LANGUAGES[code]
    near = _nearest(given, [*TO_LANGUAGE_CODE, *LANGUAGES])
    raise OptionError(f"There is no language {language!r}{near}: give a code such as en or ko, or an English name.")


def language_code(language: str) -> str:
    """The code of a language given by code or English name.

    Raises:
        OptionError: it is unknown.
    """
    name = language_name(language)
    return next(code for code, known in LANGUAGES.items() if known == name)


def build_content(
    task: str,
    *,
    layout: str = "audio_first",
    language: str | None = None,
    question: str | None = None,
    instruction: str | None = None,
) -> str:
    """The user turn of a prompt about one recording.

    Args:
        task: one of `TASKS`.
        layout: `audio_first` or `task_first`.
        language: what `translate` translates into, English by default; belongs to no other task.
        question: what `ask` asks; belongs to no other task.
        instruction: replaces the phrasing of any task but `ask`.

    Raises:
        OptionError: an unknown task, layout or language, an argument that belongs to another task, a missing or empty
            question, or control tokens in what the caller wrote.
    """
    if layout not in PROMPT_LAYOUTS:
        raise OptionError(
            f"There is no prompt layout {layout!r}{_nearest(layout, PROMPT_LAYOUTS)}: choose one of "
            f"{', '.join(PROMPT_LAYOUTS)}."
        )
    chosen = task_named(task)
    text = _phrasing(chosen, language, question, instruction)
    head = f"{chosen.token}{AUDIO_SPAN}" if layout == "task_first" else f"{AUDIO_SPAN}{chosen.token}"
    return f"{head}\n{text}"


def _phrasing(task: Task, language: str | None, question: str | None, instruction: str | None) -> str:
    if language is not None and task.name != "translate":
        raise OptionError(f"A language was given to {task.name}, which takes none: leave it out, or translate.")
    if question is not None and task.name != "ask":
        raise OptionError(f"A question was given to {task.name}, which takes none: leave it out, or ask.")
    if task.phrasing is None:
        if instruction is not None:
            raise OptionError("An instruction was given to ask, whose question is the instruction: leave it out.")
        if question is None or not question.strip():
            raise OptionError("There is no question to ask: give one that is not empty.")
        return without_control_tokens(question)
    if instruction is not None:
        return without_control_tokens(instruction)
    return task.phrasing.format(language=language_name(language or DEFAULT_LANGUAGE))


def without_control_tokens(text: str) -> str:
    """`text`, stripped, if it holds nothing that a tokenizer would read as a control token such as `<|AUDIO|>`.

    Raises:
        OptionError: it does, or half a character, as what is no UTF-8 becomes on a command line.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OptionError(
            f"The text {text[:80]!a} is no Unicode from its character {error.start + 1} on: give it as UTF-8."
        ) from None
    if found := CONTROL_TOKEN.search(text):
        raise OptionError(f"The text holds the control token {found.group()}, which is not allowed: take it out.")
    return text.strip()


def _nearest(name: str, known: object) -> str:
    near = get_close_matches(name, list(known), n=1)  # type: ignore[call-overload]
    return f", did you mean {near[0]!r}" if near else ""
