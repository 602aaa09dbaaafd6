"""A thousand requests at once over 64 adapters, again and again: all as alone, in the same memory."""

import asyncio
from pathlib import Path

import httpx
import pytest

from loralab.serving.engine import EngineSettings

ADAPTERS, REQUESTS, ROUNDS = 64, 1000, 2
SETTINGS = EngineSettings(backend="continuous", cache_tokens=16384, slots=16)


def write_adapters(base: Path, folder: Path) -> list[str]:
    """Write adapters of random weights and ranks, and return their names."""
    import torch

    from loralab.adapters.peft_format import write_adapter
    from loralab.core.adapter import Adapter
    from loralab.core.config import LoraConfig
    from loralab.models import load_base
    from loralab.serving.places import Places

    places = Places(load_base(str(base), "float32").model).by_path
    for number in range(ADAPTERS):
        numbers, rank = torch.Generator().manual_seed(number), 4 + 4 * (number % 3)
        tensors = {}
        for path, place in places.items():
            if "layers" in path:
                tensors[f"{path}.lora_A.weight"] = torch.randn(rank, place.inputs, generator=numbers) * 0.2
                tensors[f"{path}.lora_B.weight"] = torch.randn(place.outputs, rank, generator=numbers) * 0.2
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")
        write_adapter(Adapter(config, tensors), folder / f"n{number}")
    return [f"n{number}" for number in range(ADAPTERS)]


async def ask_all(url: str, models: list[str], count: int) -> list[str]:
    """Send so many requests at once, and return the texts."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:

        async def ask(number: int) -> str:
            body = {
                "model": models[number % len(models)],
                "prompt": "the little dog " * (1 + number % 5),
                "max_tokens": 6,
                "temperature": 0,
            }
            reply = await http.post("/v1/completions", json=body)
            assert reply.status_code == 200, reply.text
            return str(reply.json()["choices"][0]["text"])

        return await asyncio.gather(*(ask(number) for number in range(count)))


def resident() -> int:
    """Return this process's memory in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


@pytest.mark.slow
def test_a_thousand_requests_at_once(shop, serve, tmp_path):
    models = ["tiny", *write_adapters(shop / "tiny", tmp_path)]
    with serve([tmp_path], SETTINGS) as server:
        memory, texts = [], []
        for _ in range(ROUNDS):
            texts.append(asyncio.run(ask_all(server.url, models, REQUESTS)))
            memory.append(resident())
        for number in range(0, REQUESTS, 97):
            prompt = "the little dog " * (1 + number % 5)
            alone = server.text(model=models[number % len(models)], prompt=prompt, max_tokens=6)
            assert {round_[number] for round_ in texts} == {alone}
        stats = server.engine.cache.stats
        assert (stats.disk_reads, stats.evictions) == (ADAPTERS, 0)
        assert not server.engine.desk.answers()
        assert not any(held.uses for held in server.engine.cache.held())
        assert memory[-1] - memory[0] < 24, f"MiB after each round: {memory}"
