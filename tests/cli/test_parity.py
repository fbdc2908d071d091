"""The command line and Python have the same options under the same names."""

from dataclasses import fields
from inspect import signature

import pytest

from fastslm.cli import tasks
from fastslm.longform.transcription import TranscriptionOptions
from fastslm.speech import FastSLM

pytestmark = pytest.mark.fault

# What only one of them can have: where files are read from and written to, and objects of Python.
OF_FILES = {"files", "model", "device", "dtype", "format_name", "as_json", "output_dir", "overwrite", "skip_existing"}
OF_OBJECTS = {"self", "source", "sampling_rate", "on_progress", "kept_at"}


def _defaults(function: object) -> dict[str, object]:
    return {name: own.default for name, own in signature(function).parameters.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["transcribe", "encode"])
def test_every_option_of_the_command_line_is_pythons_and_the_reverse(task: str) -> None:
    written, called = _defaults(getattr(tasks, task)), _defaults(getattr(FastSLM, task))
    own = {name: written[name] for name in written.keys() - OF_FILES}
    assert own == {name: called[name] for name in called.keys() - OF_OBJECTS}
    assert own.keys() >= ({"prompt", "hotwords"} if task == "transcribe" else {"cuts"})


def test_every_way_to_transcribe_has_them() -> None:
    options = {field.name for field in fields(TranscriptionOptions)}
    for way in (FastSLM.transcribe, FastSLM.transcribe_many, tasks.transcribe):
        assert options <= signature(way).parameters.keys()
