"""Adapters through diffusers' own methods, on a small pipeline built here."""

import json

import peft
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel

WIDTHS = (8, 16)


def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=WIDTHS,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=64,
            eos_token_id=2,
            max_position_embeddings=16,
        )
    )
    return StableDiffusionPipeline(
        vae, text, None, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )


NOISE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
PROMPT = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def output(pipe: StableDiffusionPipeline) -> torch.Tensor:
    return pipe.unet(NOISE, 3, PROMPT).sample


TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
for name, seed, rank in (("first", 3, 4), ("second", 4, 2)):
    pipe = pipeline()
    torch.manual_seed(seed)
    pipe.unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=TARGETS)
    )
    pipe.save_lora_weights(name, unet_lora_layers=get_peft_model_state_dict(pipe.unet))

pipe = pipeline()
plain = output(pipe)
pipe.load_lora_weights("first", adapter_name="first")
first = output(pipe)
pipe.load_lora_weights("second", adapter_name="second")
pipe.set_adapters(["first", "second"], adapter_weights=[0.5, 0.8])
both = output(pipe)
active = pipe.get_active_adapters()
pipe.disable_lora()
off = output(pipe)
pipe.enable_lora()
pipe.fuse_lora(adapter_names=["first", "second"])
fused = output(pipe)
pipe.unfuse_lora()
unfused = output(pipe)
pipe.set_adapters("second")
second = output(pipe)
pipe.delete_adapters("second")
listed = pipe.get_list_adapters()
pipe.set_adapters("first")
again = output(pipe)
pipe.unload_lora_weights()
unloaded = output(pipe)
pipe.load_lora_weights("first", adapter_name="other")
reloaded = output(pipe)

swapped = pipeline()
swapped.enable_lora_hotswap(target_rank=4)
swapped.load_lora_weights("second", adapter_name="only")
before = output(swapped)
swapped.load_lora_weights("first", adapter_name="only", hotswap=True)
hot = output(swapped)


def gap(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max())


said = {
    "library": peft.__name__,
    "plain": plain.flatten()[:8].tolist(),
    "first": first.flatten()[:8].tolist(),
    "second": second.flatten()[:8].tolist(),
    "both": both.flatten()[:8].tolist(),
    "active": sorted(active),
    "listed": listed,
    "off": gap(off, plain),
    "fused": gap(fused, both),
    "unfused": gap(unfused, both),
    "again": gap(again, first),
    "unloaded": gap(unloaded, plain),
    "reloaded": gap(reloaded, first),
    "hot": [gap(before, second), gap(hot, first)],
}
print(json.dumps(said))
