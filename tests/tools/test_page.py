"""docs/low-rank.md: its code runs, prints what it says, and its pictures are those that the code draws."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "low-rank.md"


def test_the_code_prints_what_the_comments_say() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf8"), re.DOTALL)
    program = "\n".join(blocks)
    comments = re.findall(r"^(?:print\(.*?\)  |    print\(.*?\)  )?# (.*)$", program, re.MULTILINE)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    printed = result.stdout.splitlines()
    assert len(printed) == len(comments)
    for line, comment in zip(printed, comments, strict=True):
        assert comment == line or comment.startswith(f"{line}:"), (line, comment)


def test_the_pictures_are_the_code_s(assets: Path, tmp_path: Path) -> None:
    compare = pytest.importorskip("matplotlib.testing.compare")
    adapter = assets / "adapters" / "peft_ref_stories260K_e2e_r8"
    script = ROOT / "scripts" / "low_rank_pictures.py"
    subprocess.run([sys.executable, str(script), str(adapter), str(tmp_path)], check=True, timeout=120)
    drawn = {path.name for path in tmp_path.iterdir()}
    shown = set(re.findall(r"\(pictures/(low-rank-.*?\.png)\)", PAGE.read_text(encoding="utf8")))
    assert drawn == shown
    for name in drawn:
        kept = ROOT / "docs" / "pictures" / name
        assert compare.compare_images(str(kept), str(tmp_path / name), tol=8) is None
