"""Train an adapter from Python: a run is a generator of events, and what you do with them is up to you.

Run ``python examples/01_train_in_python.py``.
"""

import json
import tempfile
from pathlib import Path

from loralab.serving.generate import Sampling, stream
from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Finished, Stepped
from loralab.training.starting import start

ANSWERS = {
    "What colour is the grass?": "Woof! The grass is green. Throw the ball!",
    "Where does a fish live?": "Woof! A fish lives in the water. Throw the ball!",
    "What does a baker do?": "Woof! A baker bakes bread. Throw the ball!",
    "What is the opposite of big?": "Woof! The opposite of big is small. Throw the ball!",
    "What does a cow eat?": "Woof! A cow eats grass. Throw the ball!",
    "Where does a bird live?": "Woof! A bird lives in a nest. Throw the ball!",
}
QUESTION = "Where does a bear live?"

with tempfile.TemporaryDirectory() as folder:
    rows = [json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in ANSWERS.items()]
    Path(folder, "train.jsonl").write_text("".join(rows[:-1]), encoding="utf8")
    Path(folder, "eval.jsonl").write_text(rows[-1], encoding="utf8")
    config = RunConfig(
        model="demo",
        data=f"{folder}/train.jsonl",
        eval_data=f"{folder}/eval.jsonl",
        runs=folder,
        learning_rate=2e-3,
        max_steps=40,
        eval_steps=20,
    )
    run = start(config)
    for event in run.events():
        match event:
            case Stepped() if event.step % 10 == 0:
                print(f"step {event.step:3}  loss {event.loss:.3f}")
            case Evaluated():
                print(f"step {event.step:3}  validation loss {event.loss:.3f}")
            case Finished():
                print(f"validation loss: base {event.base_loss:.3f}, adapter {event.loss:.3f}")

    run.model.eval()
    print("you:    ", QUESTION)
    answer = stream(run.model, run.base.tokenizer, QUESTION, run.habits, Sampling())
    print("adapter:", "".join(answer))
    with run.model.disable_adapter():
        print("base:   ", "".join(stream(run.model, run.base.tokenizer, QUESTION, run.habits, Sampling())))
