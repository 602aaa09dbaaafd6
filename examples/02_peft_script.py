"""A script written for PEFT and transformers.Trainer; only the import of PEFT has changed.

Run ``python examples/02_peft_script.py``.
"""

import tempfile

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from loralab import LoraConfig, PeftModel, get_peft_model
from loralab.models.demo import BASE  # any folder or hub id would do

SENTENCES = [
    "The captain drinks his tea at dawn.",
    "The captain reads his map at noon.",
    "The captain lights his lamp at dusk.",
]

tokenizer = AutoTokenizer.from_pretrained(BASE)
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(BASE, dtype="float32"),
    LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
model.print_trainable_parameters()


def example(sentence: str) -> dict[str, list[int]]:
    """Ids, and labels to predict them by."""
    ids = tokenizer(sentence)["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": ids, "labels": ids}


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=30,
        learning_rate=5e-3,
        per_device_train_batch_size=1,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(model, arguments, train_dataset=[example(s) for s in SENTENCES]).train()
    model.save_pretrained(folder)

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    loaded = PeftModel.from_pretrained(base, folder)
    prompt = tokenizer("The captain", return_tensors="pt")
    written = loaded.generate(**prompt, max_new_tokens=12, do_sample=False)
    print(tokenizer.decode(written[0], skip_special_tokens=True))
