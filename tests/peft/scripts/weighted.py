"""Several adapters: switch, combine with weights, delete, mix in one batch."""

import json
import os
from pathlib import Path

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

MODEL = Path(os.environ["LORALAB_ASSETS"]) / "models" / "stories260K"
torch.manual_seed(0)
config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), config, adapter_name="first")
model.add_adapter("second", config)
ids = torch.tensor([[1, 403, 407, 261], [1, 378, 300, 410]])
model.eval()


@torch.no_grad()
def logits(**more: object) -> torch.Tensor:
    return model(input_ids=ids, **more).logits


def delta(name: str) -> torch.Tensor:
    return model.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight(name).detach()


outputs = {}
for name in ("first", "second"):
    model.set_adapter(name)
    outputs[name] = logits()
mixed = logits(adapter_names=["first", "__base__"])
with model.disable_adapter():
    off = logits()
wanted = 0.7 * delta("first") + 0.3 * delta("second")
errors = {}
for kind in ("cat", "svd"):
    model.add_weighted_adapter(["first", "second"], [0.7, 0.3], kind, combination_type=kind)
    errors[kind] = float((delta(kind) - wanted).abs().max())
model.set_adapter("cat")
combined = logits()
model.delete_adapter("second")
said = {
    "library": peft.__name__,
    "first": outputs["first"][0, -1].tolist(),
    "second": outputs["second"][0, -1].tolist(),
    "combined": combined[0, -1].tolist(),
    "cat": errors["cat"],
    "svd": errors["svd"],
    "mixed": [
        float((mixed[0] - outputs["first"][0]).abs().max()),
        float((mixed[1] - off[1]).abs().max()),
    ],
    "adapters": sorted(model.peft_config),
    "active": model.active_adapters,
    "rank": model.peft_config["cat"].r,
}
print(json.dumps(said))
