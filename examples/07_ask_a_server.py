"""The client's side: a server with two adapters on one base, asked by OpenAI's client.

Run ``pip install openai 'loralab[serve]'``, then ``python examples/07_ask_a_server.py``.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from openai import NotFoundError, OpenAI

from loralab import LoraConfig, get_peft_model
from loralab.models import load_base

ANSWERS = {"dog": "Woof! Throw the ball!", "cat": "Meow. Bring the fish."}


def write_adapter(folder: Path, answer: str) -> None:
    """Teach the base one answer, and write the adapter."""
    base = load_base("demo", "float32")
    model = get_peft_model(base.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    ids = base.tokenizer(f"Who are you? {answer}", return_tensors="pt").input_ids.to(base.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(25):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


with tempfile.TemporaryDirectory() as adapters:
    for name, answer in ANSWERS.items():
        write_adapter(Path(adapters) / name, answer)
    command = [sys.executable, "-m", "loralab.cli", "serve", "--model", "demo", "--adapters", adapters]
    server = subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    url = json.loads(server.stdout.readline())["url"]
    asked = {"prompt": "Who are you?", "max_tokens": 12, "temperature": 0}

    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        print("served:", *(model.id for model in client.models.list()))
        for model in ("demo", "dog", "cat", "dog:0.9+cat:0.1"):
            reply = client.completions.with_raw_response.create(model=model, **asked)
            mode = reply.headers["x-mode"]
            print(f"{model} ({mode}):{reply.parse().choices[0].text}")
        stream = client.completions.create(model="cat", stream=True, **asked)
        print("in pieces:", *(repr(chunk.choices[0].text) for chunk in stream))
        try:
            client.completions.create(model="cow", **asked)
        except NotFoundError as error:
            print("refused:", error.message)

    server.terminate()  # what runs is finished
    server.communicate()
    print("ended:", server.returncode)
