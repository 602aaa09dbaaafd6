"""Sequence classification with Trainer: the head is new, so it is trained in full and saved."""

import csv
import json
import os
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftModel, PeftModelForSequenceClassification, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

ASSETS = Path(os.environ["LORALAB_ASSETS"])
MODEL = ASSETS / "models" / "stories260K"
WANTED = ("card_arrival", "exchange_rate", "lost_or_stolen_card")


def base() -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=len(WANTED), pad_token_id=0)


tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
with (ASSETS / "data" / "classify" / "banking77_train.csv").open(encoding="utf8") as stream:
    lines = [row for row in csv.DictReader(stream) if row["category"] in WANTED]
rows = [{**tokenizer(row["text"]), "label": WANTED.index(row["category"])} for row in lines[::8]]

model = base()
model.config.pad_token_id = tokenizer.pad_token_id
torch.manual_seed(1)
model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16))
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="out",
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    ),
    train_dataset=rows,
    data_collator=DataCollatorWithPadding(tokenizer),
)
trainer.train()
model.eval()
model.save_pretrained("saved")
again = base()
again.config.pad_token_id = tokenizer.pad_token_id
loaded = PeftModel.from_pretrained(again, "saved")
batch = tokenizer("When will my card arrive?", return_tensors="pt")
logits = model(**batch).logits
said = {
    "library": peft.__name__,
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "logits": logits[0].tolist(),
    "loaded": float((loaded(**batch).logits - logits).abs().max()),
    "keys": sorted(load_file("saved/adapter_model.safetensors")),
    "kind": isinstance(loaded, PeftModelForSequenceClassification),
    "modules_to_save": sorted(loaded.peft_config["default"].modules_to_save),
}
print(json.dumps(said))
