"""The base model and the tasks that come with loralab. Made by ``scripts/demo_base``."""

from pathlib import Path

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"
TASKS = FOLDER / "tasks"
