"""From log-mel windows to embeddings in a prompt: encoder, HFQ-Former, projection, and the places that await them."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fastslm.model.ctc_head import BLANK, SPACE
from fastslm.model.heard_words import HeardWords
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.saving import FastSLMPreTrainedModel

# Without gradients, windows pass the encoder in groups: memory does not grow with the recording.
WINDOWS_AT_ONCE = 8
# Arguments of `forward` that carry speech, at most one of them.
SPEECH_INPUTS = ("input_features", "encoder_frames", "speech_tokens")


class SpeechPath(FastSLMPreTrainedModel):
    """What the model does with speech before the language model reads it."""

    encoder: WhisperEncoder
    hfq_former: HFQFormer
    projector: nn.Linear
    heard_words: "HeardWords | None"
    ctc_head: nn.Module | None
    letters: Any
    language_model: Any

    def encode(self, input_features: torch.Tensor) -> torch.Tensor:
        """Log-mel windows → encoder frames, without gradients.

        Args:
            input_features: (windows, mel bins, 3000), float32; cast to the encoder's dtype here and nowhere else.

        Returns:
            (windows, 1500, hidden)
        """
        dtype = self.encoder.conv1.weight.dtype
        with torch.no_grad():
            groups = input_features.to(dtype).split(WINDOWS_AT_ONCE)
            return torch.cat([self.encoder(group, return_dict=True).last_hidden_state for group in groups])

    def get_speech_tokens(
        self, input_features: torch.Tensor | None = None, encoder_frames: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the HFQ-Former makes of windows, before the projection; the CTC head reads this.

        Args:
            input_features: (windows, mel bins, 3000), or
            encoder_frames: (windows, 1500, hidden), the encoder's output of before.

        Returns:
            (windows, 50, hidden)
        """
        if (input_features is None) == (encoder_frames is None):
            raise ValueError("Speech tokens come from input_features or from encoder_frames: give exactly one of them.")
        if torch.is_grad_enabled():
            return self._tokens(input_features, encoder_frames)
        windows = input_features if input_features is not None else encoder_frames
        assert windows is not None
        groups = windows.split(WINDOWS_AT_ONCE)
        if input_features is not None:
            return torch.cat([self._tokens(group, None) for group in groups])
        return torch.cat([self._tokens(None, group) for group in groups])

    def _tokens(self, input_features: torch.Tensor | None, encoder_frames: torch.Tensor | None) -> torch.Tensor:
        if encoder_frames is None:
            assert input_features is not None
            encoder_frames = self.encode(input_features)
        return self.hfq_former(encoder_frames.to(self.hfq_former.compressor1.query.dtype))

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """Speech tokens → what the language model reads: (…, tokens of a window, hidden) → (…, text hidden).

        With `heard_words`, the embeddings of the words that the reader hears in them are added; none to a window in
        which the CTC head hears no letter, for which the reader could only invent some.
        """
        projected = self.projector(tokens.to(self.projector.weight.dtype))
        if self.heard_words is None:
            return projected
        windows = tokens.reshape(-1, *tokens.shape[-2:])
        texts = self.heard_words.texts(windows, self.with_letters(windows))
        words = self.heard_words.embed(texts, self.get_input_embeddings())
        return projected + words.view(projected.shape).to(projected)

    def with_letters(self, tokens: torch.Tensor) -> list[bool]:
        """In which windows, (windows, tokens, hidden), the CTC head hears a letter; all, where there is no head."""
        if self.ctc_head is None:
            return [True] * len(tokens)
        heard: list[bool] = []
        for group in tokens.split(WINDOWS_AT_ONCE):
            classes = self.letters(group).argmax(-1)
            heard += ((classes != BLANK) & (classes != SPACE)).any(1).tolist()
        return heard

    def get_audio_features(self, input_features: torch.Tensor) -> BaseModelOutputWithPooling:
        """transformers' name for the way from log-mel to embeddings.

        Returns:
            last_hidden_state (windows, 50, hidden) and pooler_output (windows, 50, text hidden).
        """
        tokens = self.get_speech_tokens(input_features)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.project(tokens))  # type: ignore

    def embed_speech(
        self,
        input_features: torch.Tensor | None = None,
        encoder_frames: torch.Tensor | None = None,
        speech_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Whichever of the three was given → (speech tokens of the batch, text hidden); `None` without any.

        Raises:
            ValueError: more than one was given, or speech tokens of another width.
        """
        given = [x for x in (input_features, encoder_frames, speech_tokens) if x is not None]
        if len(given) > 1:
            raise ValueError(f"Speech is given more than once: pass one of {', '.join(SPEECH_INPUTS)}.")
        if not given:
            return None
        width = self.projector.out_features
        if speech_tokens is None:
            return self.project(self.get_speech_tokens(input_features, encoder_frames)).reshape(-1, width)
        if speech_tokens.shape[-1] != width:
            raise ValueError(
                f"speech_tokens are {speech_tokens.shape[-1]} wide, but the language model is {width} wide: "
                "pass what embed_speech returned."
            )
        return speech_tokens.reshape(-1, width)

    def place_speech(self, input_ids: torch.Tensor, speech: torch.Tensor | None) -> torch.Tensor:
        """Embeddings of a prompt whose placeholders hold `speech`, in order of rows and places.

        Args:
            input_ids: (batch, length). speech: (placeholders in all rows, text hidden) or `None`.

        Returns:
            (batch, length, text hidden)

        Raises:
            ValueError: the number of placeholders is not that of speech embeddings.
        """
        placeholders = input_ids == self.config.audio_token_id
        # A placeholder's own embedding is never read, so it need not have one.
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(placeholders, 0))
        places, count = int(placeholders.sum()), 0 if speech is None else len(speech)
        if places != count:
            raise ValueError(
                f"The prompts hold {places} audio placeholders, but the audio gives {count} speech tokens: "
                "let FastSLMProcessor expand <|AUDIO|>, which makes the two equal."
            )
        if speech is None:
            return embeddings
        return embeddings.masked_scatter(placeholders[..., None], speech.to(embeddings.device, embeddings.dtype))
