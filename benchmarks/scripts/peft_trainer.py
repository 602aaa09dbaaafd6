"""Fine-tune with PEFT and transformers' Trainer, in padded batches: python peft_trainer.py SETTINGS.json."""

import json
import sys
from pathlib import Path

import peft
import torch
from rows import Validate, encode, read_rows
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

settings = json.loads(Path(sys.argv[1]).read_text())
tokenizer = AutoTokenizer.from_pretrained(settings["model"])
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
train, valid = ([encode(row, tokenizer) for row in read_rows(settings[key])] for key in ("train", "valid"))
collate = DataCollatorForSeq2Seq(tokenizer)

base = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16)
config = peft.LoraConfig(
    r=settings["r"],
    lora_alpha=settings["lora_alpha"],
    lora_dropout=settings["lora_dropout"],
    target_modules="all-linear",
    task_type="CAUSAL_LM",
)
trainer = Trainer(
    model=peft.get_peft_model(base, config),
    args=TrainingArguments(
        output_dir=settings["out"],
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=settings["warmup_steps"],
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=settings["eval_steps"],
        dataloader_pin_memory=False,
    ),
    train_dataset=train,
    data_collator=collate,
    callbacks=[Validate(valid, collate, settings)],
)
trainer.train()
trainer.save_model()
