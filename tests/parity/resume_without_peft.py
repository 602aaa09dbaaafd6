"""Train, resume from a checkpoint and compare, in a Python that has no peft. Argument: an empty folder."""

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from loralab import LoraConfig, PeftModel, get_peft_model

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}


def adapted(seed: int) -> PeftModel:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, pad_token_id=0))
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, init_lora_weights=seed == 1)
    return get_peft_model(base, config)


def train(model: PeftModel, folder: Path, checkpoint: Path | None) -> list[Tensor]:
    ids = torch.randint(3, 32, (8, 6), generator=torch.Generator().manual_seed(0))
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.02,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    Trainer(model=model, args=args, train_dataset=rows).train(
        resume_from_checkpoint=str(checkpoint) if checkpoint else None
    )
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]


def main(folder: Path) -> None:
    assert importlib.util.find_spec("peft") is None
    whole = train(adapted(1), folder / "whole", None)
    again = train(adapted(2), folder / "again", folder / "whole" / "checkpoint-2")
    assert not (folder / "whole" / "checkpoint-2" / "model.safetensors").exists()
    assert len(whole) == len(again) == 4
    assert all(map(torch.equal, whole, again))
    print("equal to the bit")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
