"""DoRA: train a little by hand, merge, unmerge, save and load."""

import json
import os
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

MODEL = Path(os.environ["LORALAB_ASSETS"]) / "models" / "stories260K"


def base() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(MODEL)


model = base()
torch.manual_seed(0)
config = LoraConfig(use_dora=True, r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
model = get_peft_model(model, config)
ids = torch.tensor([[1, 403, 407, 261, 378, 300, 410]])
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
losses = []
for _ in range(5):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
model.eval()
with torch.no_grad():
    plain = model(input_ids=ids).logits
    model.merge_adapter()
    merged = model(input_ids=ids).logits
    model.unmerge_adapter()
    back = model(input_ids=ids).logits
    with model.disable_adapter():
        off = model(input_ids=ids).logits
    untouched = base()(input_ids=ids).logits
    model.save_pretrained("dora")
    loaded = PeftModel.from_pretrained(base(), "dora")(input_ids=ids).logits
kinds = [type(m) for m in model.modules() if isinstance(m, BaseTunerLayer)]
said = {
    "library": peft.__name__,
    "losses": losses,
    "logits": plain[0, -1].tolist(),
    "merged": float((merged - plain).abs().max()),
    "back": float((back - plain).abs().max()),
    "off": float((off - untouched).abs().max()),
    "loaded": float((loaded - plain).abs().max()),
    "linear": sum(isinstance(m, lora.Linear) for m in model.modules()),
    "embeddings": sum(isinstance(m, lora.Embedding) for m in model.modules()),
    "layers": len(kinds),
    "status": model.get_layer_status()[0].module_type,
    "magnitudes": sorted(n for n, _ in model.named_parameters() if "magnitude" in n)[:2],
}
print(json.dumps(said))
