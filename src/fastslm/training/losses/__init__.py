"""The losses that a recipe can name, one module each."""

from typing import Any

from fastslm.training.losses.loss import Loss, Prepared

__all__ = ["Loss", "Prepared", "loss_class"]


def loss_class(name: str) -> Any:
    """The class of a loss, imported when it is asked for."""
    if name == "speech_lm":
        from fastslm.training.losses.speech_lm import SpeechLM

        return SpeechLM
    if name == "token_ctc":
        from fastslm.training.losses.token_ctc import TokenCTC

        return TokenCTC
    from fastslm.training.losses.whisper_decoder import WhisperDecoderLoss

    return WhisperDecoderLoss
