"""Many adapters on one base, without a server: switch, answer a mixed batch, stack two with weights.

Run ``python examples/06_engine.py``.
"""

import tempfile
from pathlib import Path

import torch

from loralab import LoraConfig, get_peft_model
from loralab.models import load_base
from loralab.serving.engine import Engine
from loralab.serving.requests import Request
from loralab.serving.sampling import Sampling

SENTENCES = {
    "sea": "One day, Sam went to the sea and found a red boat in the water.",
    "farm": "One day, Sam went to the farm and fed a black cow in the field.",
}


def train(name: str, sentence: str, folder: Path) -> None:
    """Teach an adapter one sentence and write it."""
    base = load_base("demo", "float32")
    model = get_peft_model(base.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    ids = base.tokenizer(sentence, return_tensors="pt").input_ids.to(base.device)
    for _ in range(25):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / name)


with tempfile.TemporaryDirectory() as place:
    for name, sentence in SENTENCES.items():
        train(name, sentence, Path(place))

    with Engine(load_base("demo", "float32"), [place]) as engine:
        prompt = engine.text_ids("One day, Sam")
        models = ["sea", "farm", "", "sea:0.5+farm:0.5"]  # two adapters, the base, and a stack
        for model in models * 2:  # one after the other: the second round reads no file
            engine.submit(Request(prompt, model, Sampling(16))).text()
        print("adapters read from disk:", engine.cache.stats.disk_reads)
        answers = [engine.submit(Request(prompt, model, Sampling(16))) for model in models]  # one batch
        for model, answer in zip(models, answers, strict=True):
            print(f"{model or 'base':<17} One day, Sam{answer.text()}")
