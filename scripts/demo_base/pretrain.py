"""Make the demo base: its tokenizer and a small Llama, from the project's own stories.

Run ``python scripts/demo_base/pretrain.py --out build/demo_base``.
"""

import argparse
import math
import time
from itertools import islice
from pathlib import Path

import torch
from chatml import train_tokenizer
from stories import Document, documents
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20
VOCABULARY = 2048
CONTEXT = 512
BATCH = 8
MATRIX_RATE = 0.02
EMBEDDING_RATE = 4e-3
IGNORED = -100


def main() -> None:
    """Train and save everything the folder of the demo base needs."""
    parser = argparse.ArgumentParser(description="Pretrain the demo base.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=900, help="optimizer steps of 8 x 512 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="about a third faster where a C++ compiler is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)

    texts = (_plain(document) for document in documents(20_000, SEED))
    tokenizer = train_tokenizer(texts, VOCABULARY, CONTEXT)
    blocks = pack(tokenizer, options.steps * BATCH)
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(blocks):,} blocks of {CONTEXT} tokens", flush=True)
    train(model, blocks, compiled=options.compile)
    save(model, tokenizer, options.out)


def _plain(document: Document) -> str:
    return document.text or "\n".join(message["content"] for message in document.messages)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of 3.8 million parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=160,
    )
    return model


def pack(tokenizer: PreTrainedTokenizerFast, count: int) -> torch.Tensor:
    """Return [count, 512] token ids: whole documents one after another, padded at the end of a block."""
    stop, pad = tokenizer.convert_tokens_to_ids("<|endoftext|>"), tokenizer.pad_token_id
    source = documents(count * 20, SEED + 1)
    blocks: list[list[int]] = []
    block: list[int] = []
    while len(blocks) < count and (some := list(islice(source, 1000))):
        written = [
            document.text or tokenizer.apply_chat_template(document.messages, tokenize=False)
            for document in some
        ]
        for ids in tokenizer(written)["input_ids"]:
            ids = [*ids, stop][:CONTEXT]
            if len(block) + len(ids) > CONTEXT:
                blocks.append(block + [pad] * (CONTEXT - len(block)))
                block = []
            block += ids
    return torch.tensor(blocks[:count])


def rate(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: 50 steps up, then a half cosine down to nothing."""
    if step < 50:
        return (step + 1) / 50
    return 0.5 * (1 + math.cos(math.pi * (step - 50) / max(1, steps - 50)))


def optimizers(model: LlamaForCausalLM, steps: int) -> list[torch.optim.lr_scheduler.LambdaLR]:
    """Return one schedule, with its optimizer inside, for the matrices of the layers and one for the rest."""
    inner = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    known = {id(weight) for weight in inner}
    rest = [weight for weight in model.parameters() if id(weight) not in known]
    muon = torch.optim.Muon(inner, lr=MATRIX_RATE, weight_decay=0.01, momentum=0.95)
    adam = torch.optim.AdamW(rest, lr=EMBEDDING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate(step, steps)) for each in (muon, adam)]


def train(model: LlamaForCausalLM, blocks: torch.Tensor, compiled: bool) -> None:
    """Train `model` once over `blocks`, in bf16 with weights kept in fp32, and print the loss."""

    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    steps = len(blocks) // BATCH
    schedules = optimizers(model, steps)
    run = torch.compile(loss_of) if compiled else loss_of
    start, recent = time.perf_counter(), []
    for step, batch in enumerate(blocks.split(BATCH), 1):
        labels = batch[:, 1:].masked_fill(batch[:, 1:] == model.config.pad_token_id, IGNORED)
        loss = run(batch[:, :-1], labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for schedule in schedules:
            schedule.optimizer.step()
            schedule.step()
        model.zero_grad()
        recent.append(loss.item())
        if step % 25 == 0 or step == steps:
            seconds = time.perf_counter() - start
            print(f"step {step:5}  loss {sum(recent) / len(recent):.4f}  {seconds:6.0f} s", flush=True)
            recent.clear()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model in bf16 and its tokenizer to the folder `out`."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}: {(out / 'model.safetensors').stat().st_size:,} bytes of weights", flush=True)


if __name__ == "__main__":
    main()
