"""What `import fastslm` gives and what it costs."""

import subprocess
import sys

import pytest

import fastslm

HEAVY = ("torch", "transformers", "av")


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_fastslm_does_no_work() -> None:
    assert not _modules_after("import fastslm") & set(HEAVY)


@pytest.mark.parametrize("command", ["--help", "--version", "transcribe --help", "evaluate asr --help", "weights list"])
def test_help_and_lists_load_no_model_code(command: str) -> None:
    code = f"from fastslm.cli import run\nassert run({command.split()}) == 0"
    assert not _modules_after(code) & set(HEAVY)


@pytest.mark.parametrize("name", fastslm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fastslm, name) is not None
    assert name in dir(fastslm)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'transcribe'"):
        _ = fastslm.transcribe  # type: ignore[attr-defined]


def test_loading_registers_with_the_auto_classes() -> None:
    code = (
        "import fastslm; fastslm.FastSLMForConditionalGeneration; from transformers import AutoModel, AutoConfig\n"
        "assert type(AutoConfig.for_model('fastslm')) is fastslm.FastSLMConfig\n"
        "assert fastslm.FastSLMConfig in AutoModel._model_mapping"
    )
    _modules_after(code)
