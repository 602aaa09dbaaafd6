"""Adapters through transformers' own methods; no PeftModel is made."""

import json
import os
from pathlib import Path

import peft
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM

MODEL = Path(os.environ["LORALAB_ASSETS"]) / "models" / "stories260K"
ids = torch.tensor([[1, 403, 407, 261]])


def base() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(MODEL)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=ids).logits


plain = logits(base())
model = base()
torch.manual_seed(0)
model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False), "one")
one = logits(model)
model.add_adapter(LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False), "two")
two = logits(model)
active = [model.active_adapters()]
trains = sorted(n for n, p in model.named_parameters() if p.requires_grad and "layers.0" in n)
model.set_adapter(["one", "two"])
together = logits(model)
active.append(model.active_adapters())
model.disable_adapters()
off = logits(model)
model.enable_adapters()
model.set_adapter("one")
state = model.get_adapter_state_dict()
model.save_pretrained("saved")
loaded = base()
info = loaded.load_adapter("saved")
wrapped = PeftModel.from_pretrained(base(), "saved")
named = AutoModelForCausalLM.from_pretrained("saved")
model.delete_adapter("two")
active.append(model.active_adapters())
again = logits(model)

config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
injected = inject_adapter_in_model(config, base())
result = set_peft_model_state_dict(injected, state)
copied = get_peft_model_state_dict(injected)
said = {
    "library": peft.__name__,
    "one": one[0, -1].tolist(),
    "two": two[0, -1].tolist(),
    "together": together[0, -1].tolist(),
    "off": float((off - plain).abs().max()),
    "active": active,
    "trains": trains,
    "keys": sorted(state),
    "loaded": float((logits(loaded) - one).abs().max()),
    "missing": sorted(info.missing_keys),
    "wrapped": float((logits(wrapped) - one).abs().max()),
    "named": float((logits(named) - one).abs().max()),
    "again": float((again - one).abs().max()),
    "injected": float((logits(injected) - one).abs().max()),
    "unexpected": list(result.unexpected_keys),
    "same": sorted(copied) == sorted(state) and all(torch.equal(copied[k], state[k]) for k in state),
}
print(json.dumps(said))
