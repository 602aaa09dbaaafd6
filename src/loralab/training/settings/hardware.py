"""What it is trained with: precision, memory, speed."""

from typing import Literal

from pydantic import Field

from loralab.training.settings import Section


class HardwareSettings(Section):
    """Precision, quantization, checkpointing."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the base; auto is bfloat16 where the hardware has it. Adapters are float32."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the base's weights in 4 or 8 bits (bitsandbytes): less memory, a little less quality."""
    activation_checkpointing: bool | None = None
    """Compute layers again in the backward pass, not keep what they made: less memory, more time. Left out:
    as few layers as the forecast of memory asks for."""
    max_memory: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Gigabytes that training may take above the loaded base. By it --fit chooses, and without --fit how many
    layers are computed again is chosen where activation_checkpointing is left out. Left out: what is free."""
    compile: bool = False
    """Compile the model's layers, which takes a minute and pays on some hardware in long runs."""
    shard: bool = False
    """Split the base's weights over the processes (FSDP2), where torchrun or accelerate started several."""
    allow_pickle: bool = False
    """Load a base whose weights are a pickle file. A pickle can run any program."""
