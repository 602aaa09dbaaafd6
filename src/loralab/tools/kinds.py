"""What a module is, read off the name and the shape of its weight where there is no model to ask."""

import re
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["MATRICES", "kind_of", "task_of", "tied_head"]

MATRICES = ("linear", "conv1d", "convolution")
"""The kinds that are adapted without being asked for by name."""

_EMBEDDING = re.compile(
    r"(wte|wpe|shared|relative_attention_bias|embed_in|(tok|word|position|token_type)_embeddings?"
    r"|embed_(tokens|positions)(_per_layer)?|embeddings?)"
)
_INPUT_EMBEDDING = re.compile(r"wte|shared|embed_in|embed_tokens|(tok|word)_embeddings")
_HEADS = {"lm_head", "embed_out", "score", "classifier", "qa_outputs", "cls"}
_CONV1D = {"c_attn", "c_proj", "c_fc", "q_attn"}
_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def kind_of(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> str:
    """Return the kind of module that the tensor `name` is the weight of.

    Kinds: linear, conv1d (GPT-2's linear layer, stored as [in, out]), convolution, embedding, head, and other
    for what is no weight matrix.
    """
    path, _, ending = name.rpartition(".")
    parts = path.split(".")
    if ending != "weight" or not 2 <= len(shape) <= 5:
        return "other"
    if len(shape) > 2:
        return "convolution"
    if _HEADS.intersection(parts):
        return "head"
    if _EMBEDDING.fullmatch(parts[-1]):
        return "embedding"
    if config.get("model_type") in _CONV1D_MODELS and parts[-1] in _CONV1D:
        return "conv1d"
    return "linear"


def tied_head(names: Collection[str], config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the paths of (input embedding, output head) of a language model that has one weight for both.

    A head that is stored nowhere can only be the embedding.
    """
    if task_of(config) not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        return None
    paths = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    if any(_HEADS.intersection(path.split(".")) for path in paths):
        return None
    embeddings = [path for path in paths if _INPUT_EMBEDDING.fullmatch(path.rpartition(".")[2])]
    head = "embed_out" if config.get("model_type") == "gpt_neox" else "lm_head"
    return (embeddings[0], head) if embeddings else None


def task_of(config: Mapping[str, Any]) -> str | None:
    """Return PEFT's word for what the model is for, by the name of its class."""
    names = config.get("architectures") or [""]
    return next((task for ending, task in _TASKS.items() if str(names[0]).endswith(ending)), None)
