"""A program that says ``import peft`` everywhere, after one line at its start.

Run ``python examples/05_migrating_from_peft.py``.
"""

import loralab.peft

loralab.peft.install()  # before transformers, trl and diffusers look for peft

import peft  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict  # noqa: E402
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from loralab.models.demo import BASE  # noqa: E402  # any folder or hub id would do

print(f"peft is {peft.__name__}, in place of release {peft.__version__}")
tokenizer = AutoTokenizer.from_pretrained(BASE)
ids = tokenizer("The captain drinks his tea at dawn.", return_tensors="pt").input_ids
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def base() -> torch.nn.Module:
    """The bundled base."""
    return AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")


def train(model: torch.nn.Module) -> float:
    """Learn one sentence by heart; the last loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    return float(loss.detach())


torch.manual_seed(0)
wrapped = get_peft_model(base(), config)
print(f"get_peft_model: loss {train(wrapped):.2f}")

torch.manual_seed(0)
bare = base()
bare.add_adapter(config, "captain")  # transformers' own method, which imports peft
print(f"model.add_adapter: loss {train(bare):.2f}")
layers = sum(isinstance(module, BaseTunerLayer) for module in bare.modules())
print(f"{layers} adapted layers, {len(get_peft_model_state_dict(bare, adapter_name='captain'))} tensors")
bare.disable_adapters()
print(f"switched off: loss {float(bare(input_ids=ids, labels=ids).loss.detach()):.2f}")

other = get_peft_model(base(), config)
peft.set_peft_model_state_dict(other, bare.get_adapter_state_dict("captain"))
same = torch.equal(other.eval()(input_ids=ids).logits, wrapped.eval()(input_ids=ids).logits)
print(f"the same adapter both ways: {same and isinstance(other, PeftModel)}")
