"""The same training as a plain loop with the `peft` library: the same losses, step by step, on real data."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Finished, Stepped
from loralab.training.order import batch_at
from loralab.training.schedule import learning_rate
from loralab.training.starting import start

peft = pytest.importorskip("peft")

STEPS = 20
RATE = 5e-3


def read(path: Path, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Ids and labels: prompt, a line break, completion, end of sequence; the answer alone is trained."""
    made = []
    for line in path.read_text(encoding="utf8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"] + "\n")["input_ids"]
        whole = tokenizer(row["prompt"] + "\n" + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        assert whole[: len(prompt)] == prompt
        made.append((whole, [-100] * len(prompt) + whole[len(prompt) :]))
    return made


def plain_loop(
    folder: Path, data: Path, config: RunConfig
) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
    """What a person would write with peft: padded rows, one mean over the trained tokens, AdamW, clipping."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(config.seed)
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    rows = read(data, tokenizer)
    for step in range(STEPS):
        batch = [rows[index] for index in batch_at(step, len(rows), config.batch_size, config.seed)]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in batch])
        labels = torch.tensor([row + [-100] * (width - len(row)) for _, row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in batch])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, STEPS)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach()), model.state_dict()


def e2e(assets: Path, tmp_path: Path, **changes: Any) -> RunConfig:
    """The settings of the reference adapter, as a newcomer would give them."""
    values = {
        "name": "e2e",
        "model": str(assets / "models" / "stories260K"),
        "data": str(assets / "data" / "e2e" / "train_2k.jsonl"),
        "runs": str(tmp_path),
        "r": 8,
        "lora_alpha": 16,
        "target_modules": "all-linear",
        "learning_rate": RATE,
        "batch_size": 16,
        "max_steps": STEPS,
        "save_steps": 400,
        "dtype": "float32",
    }
    return RunConfig(**values | changes)


def test_twenty_steps_lose_what_peft_s_lose(assets, tmp_path):
    run = start(e2e(assets, tmp_path, batch_size=4, micro_batch_size=2))
    ours = [event.loss for event in run.events() if isinstance(event, Stepped)]
    steps = list(plain_loop(Path(run.config.model), Path(run.config.data), run.config))
    theirs, state = [loss for loss, _ in steps], steps[-1][1]
    assert len(ours) == len(theirs) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0] - 0.3
    tensors = dict(run.model.state_dict())
    names = [name for name in state if "lora_" in name]
    assert len(names) == 2 * 35
    for name in names:
        torch.testing.assert_close(tensors[name], state[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_four_hundred_steps_of_e2e_reach_peft_s_quality(assets, tmp_path):
    config = e2e(
        assets,
        tmp_path,
        max_steps=400,
        eval_steps=400,
        eval_data=str(assets / "data" / "e2e" / "valid_500.jsonl"),
        target_modules="all-linear",
    )
    events = list(start(config).events())
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.base_loss == pytest.approx(4.147, abs=0.1)
    assert finished.loss is not None
    assert finished.loss <= 0.92
    assert [event.step for event in events if isinstance(event, Evaluated)] == [400]
