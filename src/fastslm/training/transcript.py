"""The paper's loss: the language model writes the transcript after the speech tokens (section 4, stage 1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastslm.model.ctc_head import CTCHead, FrameCTCHead, ctc_loss, ctc_text
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.lora import lora_parameters
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.training.objectives import Batch, combined

IGNORED = -100
NEW_TOKENS = 128


class LanguageModelTranscript:
    """Cross-entropy of the transcript's tokens, and of the end token, after the prompt with its speech tokens.

    Labels cover the answer only: not the prompt, not the speech, not the padding.

    Args:
        model: with the HFQ-Former and the CTC head that are trained, and the frozen base.
        ctc_weight: of the CTC head's loss beside it.
    """

    writer = "the language model"
    # Writing takes a pass of the language model a token, so few clips have to do.
    validation_clips = 20

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor, ctc_weight: float):
        # Of transformers' mixins, which type checkers cannot follow.
        self.model: Any = model
        self.processor = processor
        self.weights: dict[str, float] = {"transcript": 1.0}
        if ctc_weight:
            self.weights["ctc"] = ctc_weight
        assert isinstance(model.hfq_former, HFQFormer)
        self.parts: dict[str, nn.Module] = {
            "hfq": model.hfq_former,
            "projector": model.projector,
            "lora": nn.ParameterList(lora_parameters(model.language_model)),
        }
        if isinstance(model.ctc_head, CTCHead | FrameCTCHead):
            self.parts["head"] = model.ctc_head
        prompt = processor.expand([processor.build_prompt("transcribe")], [1])[0]
        tokenizer: Any = processor.tokenizer
        self.prompt: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
        self.end: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id

    def sequences(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Prompt, answer and end token of each text, padded on the right: input_ids, attention_mask, labels."""
        tokenizer: Any = self.processor.tokenizer
        answers = [[*tokenizer.encode(text, add_special_tokens=False), self.end] for text in texts]
        longest = max(len(answer) for answer in answers)
        ids, mask, labels = [], [], []
        for answer in answers:
            padding = longest - len(answer)
            ids.append([*self.prompt, *answer, *[self.pad] * padding])
            mask.append([1] * (len(self.prompt) + len(answer)) + [0] * padding)
            labels.append([IGNORED] * len(self.prompt) + answer + [IGNORED] * padding)
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        tokens = self.model.hfq_former(batch.frames)
        inputs = {k: v.to(tokens.device) for k, v in self.sequences([ctc_text(text) for text in batch.texts]).items()}
        speech = self.model.project(tokens).flatten(0, 1)
        # The logits of the prompt are not wanted; the one before the answer is, since labels are shifted.
        wanted = inputs["input_ids"].shape[1] - len(self.prompt) + 1
        transcript = self.model(speech_tokens=speech, logits_to_keep=wanted, use_cache=False, **inputs).loss
        terms = {"transcript": transcript}
        if "ctc" in self.weights:
            terms["ctc"] = ctc_loss(self.model.letters(tokens), batch.texts)
        return {"loss": combined(terms, self.weights), **terms}

    def amounts(self, batches: Sequence[Batch]) -> dict[str, float]:
        labels = [self.sequences([ctc_text(text) for text in batch.texts])["labels"] for batch in batches]
        found: dict[str, float] = {"transcript": sum(int((own != IGNORED).sum()) for own in labels)}
        return found | ({"ctc": sum(map(len, batches))} if "ctc" in self.weights else {})

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        return self.model.letters(self.model.hfq_former(frames))

    def transcripts(self, frames: torch.Tensor) -> list[str]:
        """Greedy text of each window, at most `NEW_TOKENS` tokens long."""
        tokens = self.model.hfq_former(frames)
        ids = torch.tensor([self.prompt] * len(frames), device=frames.device)
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            speech_tokens=self.model.project(tokens).flatten(0, 1),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        tokenizer: Any = self.processor.tokenizer
        return [ctc_text(t) for t in tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)]
