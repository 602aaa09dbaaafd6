"""The base model and the task that come with loralab. Made by ``scripts/demo_base``."""

from pathlib import Path

_FOLDER = Path(__file__).parent
BASE = _FOLDER / "base"
SETTINGS = _FOLDER / "run.toml"
TRAIN = _FOLDER / "tasks" / "pirate_train.jsonl"
EVAL = _FOLDER / "tasks" / "pirate_eval.jsonl"
PROMPTS = _FOLDER / "tasks" / "prompts.json"
