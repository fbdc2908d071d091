"""FastSLM: a speech language model that hears hours of speech at 1.67 tokens a second (arXiv 2601.06199).

    import fastslm
    model = fastslm.load()
    print(model.transcribe("talk.mp3").text)

Importing this package does no work: each public name brings what it needs when it is first used. transformers' Auto
classes and pipelines know FastSLM once `FastSLMForConditionalGeneration` was named, or `fastslm.load` called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastslm.errors import FastSLMError as FastSLMError
    from fastslm.loading import load as load
    from fastslm.longform.memory import SpeechMemory as SpeechMemory
    from fastslm.longform.results import Answer as Answer
    from fastslm.longform.results import Segment as Segment
    from fastslm.longform.results import Transcript as Transcript
    from fastslm.longform.results import Word as Word
    from fastslm.model.configuration import FastSLMConfig as FastSLMConfig
    from fastslm.model.configuration import HFQFormerConfig as HFQFormerConfig
    from fastslm.model.modeling import FastSLMForConditionalGeneration as FastSLMForConditionalGeneration
    from fastslm.model.processing import FastSLMProcessor as FastSLMProcessor
    from fastslm.speech import FastSLM as FastSLM

__version__ = "0.1.0"

_HOMES = {
    "Answer": "fastslm.longform.results",
    "FastSLM": "fastslm.speech",
    "FastSLMConfig": "fastslm.model.configuration",
    "FastSLMError": "fastslm.errors",
    "FastSLMForConditionalGeneration": "fastslm.model.modeling",
    "FastSLMProcessor": "fastslm.model.processing",
    "HFQFormerConfig": "fastslm.model.configuration",
    "Segment": "fastslm.longform.results",
    "SpeechMemory": "fastslm.longform.memory",
    "Transcript": "fastslm.longform.results",
    "Word": "fastslm.longform.results",
    "load": "fastslm.loading",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastslm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
