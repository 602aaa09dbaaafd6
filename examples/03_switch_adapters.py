"""Two adapters on one base: train each, switch between them, merge one, swap it for the other.

Run ``python examples/03_switch_adapters.py``.
"""

import torch

from loralab import LoraConfig, get_peft_model
from loralab.models import load_base

SENTENCES = {
    "sea": "One day, Sam went to the sea and found a red boat in the water.",
    "farm": "One day, Sam went to the farm and fed a black cow in the field.",
}
PROMPT = "One day, Sam"

base = load_base("demo", "float32")
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
model = get_peft_model(base.model, config, adapter_name="sea")
model.add_adapter("farm", config)
layer = model.get_base_model().model.layers[0].mlp.up_proj
original = layer.weight.clone()


def ids(text: str) -> torch.Tensor:
    """Token ids, [1, T]."""
    return base.tokenizer(text, return_tensors="pt").input_ids.to(base.device)


def say(label: str) -> None:
    """Print what the model makes of the prompt."""
    written = model.generate(ids(PROMPT), max_new_tokens=16, do_sample=False)
    print(f"{label:<12} {base.tokenizer.decode(written[0])}")


for name, sentence in SENTENCES.items():
    model.set_adapter(name)  # only this one runs, and only this one is trained
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(25):
        model(input_ids=ids(sentence), labels=ids(sentence)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

for name in SENTENCES:
    model.set_adapter(name)
    say(name)
with model.disable_adapter():
    say("base")
for name in SENTENCES:
    model.swap_adapter(name)  # merged into the weights: no adapter to compute, same answer
    model.set_adapter(name)
    say(f"{name} merged")
model.unmerge_adapter()
print("weights are the original ones, bit for bit:", torch.equal(layer.weight, original))
