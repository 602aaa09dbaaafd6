"""PEFT's quick start, on a small real model."""

import json
import os
from pathlib import Path

import peft
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

MODEL = Path(os.environ["LORALAB_ASSETS"]) / "models" / "stories260K"
TEXTS = ["Once upon a time there was a cat.", "The dog ran to the park.", "Lily had a red ball."] * 4

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL)
peft_config = LoraConfig(
    task_type=TaskType.CAUSAL_LM, inference_mode=False, r=8, lora_alpha=32, lora_dropout=0.0
)
torch.manual_seed(0)
model = get_peft_model(model, peft_config)
model.print_trainable_parameters()

rows = []
for text in TEXTS:
    ids = tokenizer(text)["input_ids"]
    rows.append({"input_ids": ids, "labels": ids})
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="out",
        learning_rate=5e-3,
        per_device_train_batch_size=1,
        max_steps=6,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    ),
    train_dataset=rows,
)
trainer.train()
model.save_pretrained("output_dir")

inputs = tokenizer("Once upon a time", return_tensors="pt")
model.eval()
trained = model(**inputs).logits
loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), "output_dir")
auto = AutoPeftModelForCausalLM.from_pretrained("output_dir")
merged = auto.merge_and_unload()
text = tokenizer.decode(loaded.generate(**inputs, max_new_tokens=12, do_sample=False)[0])
said = {
    "library": peft.__name__,
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "trainable": model.get_nb_trainable_parameters()[0],
    "text": text,
    "logits": trained[0, -1].tolist(),
    "loaded": float((loaded(**inputs).logits - trained).abs().max()),
    "merged": float((merged(**inputs).logits - trained).abs().max()),
    "files": sorted(os.listdir("output_dir")),
    "config": sorted(json.loads(Path("output_dir/adapter_config.json").read_text())),
    "class": type(loaded).__name__,
    "names": sorted(name for name, p in model.named_parameters() if p.requires_grad)[:4],
}
print(json.dumps(said))
