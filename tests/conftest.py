"""What every test shares: no network, a fixed number of threads, a cache of its own, and the test assets."""

import os
import tempfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before anything imports torch or transformers: both read it once."""
    worker = "PYTEST_XDIST_WORKER" in os.environ
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = str(config.rootpath / ".pytest_cache" / "huggingface")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("OMP_NUM_THREADS", "1" if worker else "2")
    cache = tempfile.TemporaryDirectory(prefix="loralab-tests-")
    config.add_cleanup(cache.cleanup)
    os.environ["LORALAB_CACHE"] = cache.name
    os.environ.pop("LORALAB_CACHE_GB", None)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder named by LORALAB_ASSETS: small real models, tokenizers, data files and adapters."""
    folder = os.environ.get("LORALAB_ASSETS")
    if not folder:
        pytest.skip("LORALAB_ASSETS is not set: this test needs the folder of test assets")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"LORALAB_ASSETS is '{folder}', which is not a folder")
    return path


@pytest.fixture(scope="session")
def stories_model_dir(assets: Path) -> Path:
    """A real Llama of 260,032 parameters, trained on TinyStories, with its tokenizer."""
    return assets / "models" / "stories260K"
