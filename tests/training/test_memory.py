"""What a run does for less memory: it changes how a step is computed, not what it gives."""

import pytest
import torch
from torch import Tensor

from loralab.errors import ConfigError
from loralab.models import load_base
from loralab.training.fitting import keep_less
from loralab.training.starting import start


def kept_bytes(run) -> int:
    """Bytes of the tensors that one step keeps for its backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    run.model.train()
    weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run.task.loss(run.model, run.data.examples[:4])
    return sum(size for pointer, size in sizes.items() if pointer not in weights)


def test_activation_checkpointing_keeps_less_and_gives_the_same_adapter(settings):
    written, kept = [], []
    for name, again in (("plain", False), ("again", True)):
        run = start(settings(name=name, activation_checkpointing=again, lora_dropout=0.2))
        kept.append(kept_bytes(run))
        list(run.events())
        written.append((run.folder.adapter / "adapter_model.safetensors").read_bytes())
    assert kept[1] < 0.5 * kept[0]
    assert written[0] == written[1]


def test_a_model_that_cannot_compute_its_layers_again_is_refused(tiny_dir):
    base = load_base(str(tiny_dir))
    base.model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="activation_checkpointing: LlamaForCausalLM cannot"):
        keep_less(base)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantized_base_is_trained_over_and_is_not_changed(settings, quantize):
    pytest.importorskip("bitsandbytes", reason="quantized bases need bitsandbytes")
    run = start(settings(name=quantize, quantize=quantize, max_steps=20))
    frozen = {name: p.clone() for name, p in run.model.named_parameters() if not p.requires_grad}
    assert {p.dtype for p in frozen.values()} & {torch.uint8, torch.int8}
    losses = [event.loss for event in run.events() if type(event).__name__ == "Stepped"]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    now = dict(run.model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())
