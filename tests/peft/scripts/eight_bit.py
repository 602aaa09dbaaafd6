"""The notebook recipe for a large model in 8 bits: prepare, adapt, train, save, load."""

import json
import os
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

MODEL = str(Path(os.environ["LORALAB_ASSETS"]) / "models" / "stories260K")
TEXTS = ["A bird sat on the tree.", "Tom likes to play with his toys.", "The sun was warm."] * 4


def base() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        MODEL, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )


tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.eos_token
model = prepare_model_for_kbit_training(base())
config = LoraConfig(
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "v_proj"],
    lora_dropout=0.0,
    bias="none",
    task_type="CAUSAL_LM",
)
torch.manual_seed(0)
model = get_peft_model(model, config)
trainable, total = model.get_nb_trainable_parameters()
trainer = Trainer(
    model=model,
    train_dataset=[tokenizer(text) for text in TEXTS],
    args=TrainingArguments(
        per_device_train_batch_size=4,
        max_steps=4,
        learning_rate=2e-3,
        logging_steps=1,
        output_dir="outputs",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    ),
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
model.config.use_cache = False
trainer.train()
model.save_pretrained("lora")

stored = PeftConfig.from_pretrained("lora")
loaded = PeftModel.from_pretrained(base(), "lora")
batch = tokenizer("The sun", return_tensors="pt")
with torch.no_grad():
    wanted, got = model.eval()(**batch).logits.float(), loaded(**batch).logits.float()
    text = tokenizer.decode(loaded.generate(**batch, max_new_tokens=8, do_sample=False)[0])
layer = loaded.base_model.model.model.layers[0].self_attn.q_proj
said = {
    "library": peft.__name__,
    "trainable": trainable,
    "total": total,
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "logits": got[0, -1].tolist(),
    "loaded": float((wanted - got).abs().max()),
    "layer": repr(layer).partition("(")[0],
    "base": stored.base_model_name_or_path == MODEL,
    "text": text,
}
print(json.dumps(said))
