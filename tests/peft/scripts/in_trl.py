"""Supervised fine-tuning with trl's SFTTrainer and a peft_config."""

import json
import os
from pathlib import Path

import peft
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

MODEL = str(Path(os.environ["LORALAB_ASSETS"]) / "models" / "stories260K")
TEXTS = ["A bird sat on the tree.", "Tom likes to play with his toys.", "The sun was warm and bright."] * 4

tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(MODEL),
    processing_class=tokenizer,
    train_dataset=Dataset.from_dict({"text": TEXTS}),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    args=SFTConfig(
        output_dir="out",
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=5e-3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        gradient_checkpointing=True,
        max_length=32,
    ),
)
trainer.train()
trainer.save_model("saved")
model = trainer.model.eval()
batch = tokenizer("The sun", return_tensors="pt")
loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), "saved")
with torch.no_grad():
    wanted, got = model(**batch).logits, loaded(**batch).logits
said = {
    "library": peft.__name__,
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "logits": got[0, -1].tolist(),
    "loaded": float((wanted - got).abs().max()),
    "adapted": isinstance(trainer.model, PeftModel),
    "saved": sorted(n for n in os.listdir("saved") if n.startswith("adapter")),
    "whole": "model.safetensors" in os.listdir("saved"),
}
print(json.dumps(said))
