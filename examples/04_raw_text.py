"""Raw text: cut into blocks that overlap, learned without a template, continued as it stands.

Run ``python examples/04_raw_text.py``.
"""

import tempfile
from pathlib import Path

from loralab.data.preview import preview
from loralab.serving.generate import Sampling, stream
from loralab.training.config import RunConfig
from loralab.training.events import Finished
from loralab.training.starting import start

STORY = """\
Once upon a time, there was a small boat named Pip. Pip lived on a lake near the forest.
One day, there was a big storm. The wind was strong and the water was very cold.
A little bird fell into the lake. "Help!" called the bird. The big boats were too far away to hear.
Pip heard the bird and came quickly. The bird sat down on Pip, and soon they were safe.
After that, Pip and the bird were good friends. Every morning they went out to find fish.
"""
PROMPT = "Once upon a time, there was a"

with tempfile.TemporaryDirectory() as folder:
    text = Path(folder, "pip.txt")
    text.write_text(STORY, encoding="utf8")
    config = RunConfig(
        model="demo",
        data=str(text),
        runs=folder,
        cutoff_length=64,
        overlap_length=16,
        learning_rate=2e-3,
        max_steps=40,
    )
    run = start(config)
    for block in run.data.examples:
        print(f"{block.source}: {block.trained} of {len(block.ids)} tokens are trained")
        print("".join(f"[{p.text}]" if p.trained else p.text for p in preview(block, run.base.tokenizer)))
    for event in run.events():
        if isinstance(event, Finished):
            print(f"trained for {event.seconds:.1f} seconds")

    run.model.eval()
    pieces = stream(run.model, run.base.tokenizer, PROMPT, run.habits, Sampling(max_new_tokens=14))
    print(PROMPT + "".join(pieces))
