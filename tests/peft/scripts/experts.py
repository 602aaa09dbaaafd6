"""An adapter of single experts, as it was stored when each had linear layers, and targets that name those."""

import json
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM

NAMES = {"w1": (24, 16), "w3": (24, 16), "w2": (16, 24)}
ids = torch.tensor([[1, 5, 9, 3]])


def base() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> list[float]:
    return model(input_ids=ids).logits.flatten()[:40].tolist()


torch.manual_seed(1)
tensors = {}
for layer in range(2):
    block = f"base_model.model.model.layers.{layer}.block_sparse_moe"
    shapes = {f"{block}.experts.{e}.{name}": shape for e in range(3) for name, shape in NAMES.items()}
    for path, (out, width) in {**shapes, f"{block}.gate": (3, 16)}.items():
        tensors[f"{path}.lora_A.weight"] = torch.randn(2, width) * 0.3
        tensors[f"{path}.lora_B.weight"] = torch.randn(out, 2) * 0.3
targets = [*NAMES, "gate"]
LoraConfig(r=2, lora_alpha=4, target_modules=targets).save_pretrained("old")
save_file(tensors, Path("old", "adapter_model.safetensors"), metadata={"format": "pt"})

wrapped = PeftModel.from_pretrained(base(), "old")
inside = base()
inside.load_adapter("old")
fresh = get_peft_model(base(), LoraConfig(r=2, lora_alpha=4, target_modules=targets))
said = {
    "library": peft.__name__,
    "plain": logits(base()),
    "wrapped": logits(wrapped),
    "inside": logits(inside),
    "trains": sorted((n, list(p.shape)) for n, p in fresh.named_parameters() if p.requires_grad),
}
print(json.dumps(said))
