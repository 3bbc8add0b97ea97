"""Sentence encoders of transformers: vectors of words where there is no CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.sections.teachers.weights import Weights
from pipeline.teachers.loading.pretrained import Network, load_network, load_tokenizer

CLASSES = {
    "bert": "BertModel",
    "mpnet": "MPNetModel",
    "distilbert": "DistilBertModel",
    "xlm-roberta": "XLMRobertaModel",
}
"""Kinds of networks that sentence encoders are, by `model_type`, and their classes in transformers."""

_BATCH = 256


@dataclass(frozen=True, eq=False)
class Sentences:
    """A sentence encoder: a sentence's vector is the mean of its words' (Reimers and Gurevych, "Sentence-BERT")."""

    network: Network
    tokenizer: Any

    def text_vectors(self, prompts: Sequence[str], templates: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d): the mean of those of its sentences, each of length 1."""
        import torch
        from torch.nn.functional import normalize

        sentences = [template.format(prompt) for prompt in prompts for template in templates]
        found = []
        with torch.inference_mode():
            for start in range(0, len(sentences), _BATCH):
                some = self.tokenizer(
                    sentences[start : start + _BATCH], padding=True, truncation=True, return_tensors="pt"
                ).to(self.network.device)
                words = self.network.model(**some).last_hidden_state
                there = some["attention_mask"][..., None].to(words.dtype)
                found.append(normalize((words * there).sum(dim=1) / there.sum(dim=1), dim=-1))
            mean = torch.cat(found).view(len(prompts), len(templates), -1).mean(dim=1)
            vectors: npt.NDArray[np.float32] = normalize(mean, dim=-1).float().cpu().numpy()
        return vectors


def load_sentences(weights: Weights, device: str) -> Sentences:
    """Return the sentence encoder of a folder of transformers; raises ConfigError."""
    network = load_network(weights, CLASSES, device)
    return Sentences(network, load_tokenizer(network))
