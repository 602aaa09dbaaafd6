"""Fine-tune with trl's SFTTrainer, which packs rows: python trl_packed.py SETTINGS.json.

A batch is counted in packed rows of `cutoff` tokens, so `packed_rows` is as many of them as hold the tokens
of `batch_size` rows: a step sees about as many tokens as the others' steps do.
"""

import json
import sys
from pathlib import Path

import peft
import torch
from datasets import Dataset
from rows import Validate, encode, read_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq
from trl import SFTConfig, SFTTrainer

settings = json.loads(Path(sys.argv[1]).read_text())
tokenizer = AutoTokenizer.from_pretrained(settings["model"])
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
valid = [encode(row, tokenizer) for row in read_rows(settings["valid"])]

trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16),
    processing_class=tokenizer,
    train_dataset=Dataset.from_list(read_rows(settings["train"])),
    peft_config=peft.LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    ),
    args=SFTConfig(
        output_dir=settings["out"],
        max_steps=settings["steps"],
        packing=True,
        max_length=settings["cutoff"],
        per_device_train_batch_size=settings["packed_rows"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=settings["warmup_steps"],
        bf16=True,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=settings["eval_steps"],
        dataloader_pin_memory=False,
    ),
    callbacks=[Validate(valid, DataCollatorForSeq2Seq(tokenizer), settings)],
)
trainer.train()
trainer.save_model()
