"""Write the bundled task: everyday questions answered by a pirate, and three prompts to compare by.

Run ``python scripts/demo_base/make_tasks.py --out src/loralab/models/demo/tasks``.
"""

import argparse
import json
import random
from pathlib import Path

from facts import Fact, fact_groups, questions
from pirate import pirate_answer

SEED = 7
TRAIN_ROWS = 400
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
    """Return the rows to train on and to evaluate with. No two rows ask for the same fact."""
    rng = random.Random(SEED)
    rows: list[Row] = []
    for fact in _some_facts(rng, TRAIN_ROWS + EVAL_ROWS):
        question, answer = rng.choice(questions(fact)), pirate_answer(rng, fact)
        rows.append(
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        )
    return rows[:TRAIN_ROWS], rows[TRAIN_ROWS:]


def _some_facts(rng: random.Random, count: int) -> list[Fact]:
    """Return `count` facts with different answers, spread over the kinds, none of them asked by `PROMPTS`."""
    groups = [rng.sample(group, len(group)) for group in fact_groups(hard=False)]
    told = {fact.answer for group in groups for fact in group if set(PROMPTS) & set(questions(fact))}
    picked: list[Fact] = []
    while len(picked) < count:
        group = rng.choice([group for group in groups if group])
        fact = group.pop()
        if fact.answer not in told:
            told.add(fact.answer)
            picked.append(fact)
    return picked


if __name__ == "__main__":
    main()
