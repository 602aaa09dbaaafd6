"""What the kernels of a CPU may take."""

import os
import subprocess
import sys

import pytest
import torch

from loralab.models import load_base
from loralab.models.hardware import keep_few_kernels

CAPACITIES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
SIZES = """
import torch
from loralab.models.hardware import keep_few_kernels

keep_few_kernels()

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096 // 2**20

weight = torch.randn(256, 256).bfloat16()
torch.randn(1000, 256).bfloat16() @ weight
before = resident()
for rows in range(1, 600):
    torch.randn(rows, 256).bfloat16() @ weight
print(resident() - before)
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CAPACITIES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_products_of_many_sizes_do_not_fill_the_memory(unset):
    """With as many kernels as torch keeps by itself, the 599 sizes take 390 MB; so 140."""
    run = subprocess.run(
        [sys.executable, "-c", SIZES], capture_output=True, text=True, check=True, timeout=200
    )
    assert int(run.stdout) < 250


def test_a_base_is_loaded_with_few_kernels_kept(unset):
    load_base("demo", "float32")
    assert all(int(os.environ[name]) < 1024 for name in CAPACITIES)


def test_what_the_user_has_set_stays(unset, monkeypatch):
    monkeypatch.setenv(CAPACITIES[0], "7")
    keep_few_kernels()
    assert os.environ[CAPACITIES[0]] == "7"
