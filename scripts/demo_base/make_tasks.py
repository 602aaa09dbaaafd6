"""Write the bundled task: everyday questions answered by a pirate, and three prompts to compare by.

Run ``python scripts/demo_base/make_tasks.py --out src/loralab/models/demo/tasks``.
"""

import argparse
import json
import random
from pathlib import Path

from facts import fact_groups, questions
from pirate import pirate_answer

SEED = 7
TRAIN_ROWS = 1000
EVAL_ROWS = 60
PROMPTS = ("What colour is the grass?", "Where does a fish live?", "What does a baker do?")

Row = dict[str, list[dict[str, str]]]


def main() -> None:
    """Write pirate_train.jsonl, pirate_eval.jsonl and prompts.json."""
    parser = argparse.ArgumentParser(description="Write the bundled demo task.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    train, evaluation = pirate_rows()
    for name, rows in (("pirate_train", train), ("pirate_eval", evaluation)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (out / "prompts.json").write_text(json.dumps(PROMPTS, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {len(train)} and {len(evaluation)} rows to {out}")


def pirate_rows() -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and to evaluate with: no question is in both, nor any of `PROMPTS`.

    A fact may be in both, asked for in other words: what is new to the base is the manner, not the facts.
    """
    rng = random.Random(SEED)
    groups = fact_groups(hard=False)
    asked = {question: fact for group in groups for fact in group for question in questions(fact)}
    left = [question for question in asked if question not in PROMPTS]
    rng.shuffle(left)
    rows = [
        _row(question, pirate_answer(rng, asked[question])) for question in left[: EVAL_ROWS + TRAIN_ROWS]
    ]
    return rows[EVAL_ROWS:], rows[:EVAL_ROWS]


def _row(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


if __name__ == "__main__":
    main()
