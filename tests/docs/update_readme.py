"""Puts the real output of the README's command and Python into the README, after the starter has changed.

.venv/bin/python -m tests.docs.update_readme
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    command = [sys.executable, "-m", "annotary", "tag", "examples"]
    text = _replaced(text, "annotary tag examples", _output(command))
    text = _replaced(text, "the Python above", _output([sys.executable, "-c", code]))
    for line in re.findall(r"^annotary ((?:classify|search) .*)$", text, re.M)[:2]:
        name, *arguments = shlex.split(line)
        command = [sys.executable, "-m", "annotary", name, *arguments]
        text = _replaced(text, f"annotary {name}", _output(command))
    README.write_text(text, encoding="utf-8", newline="\n")


def _output(command: list[str]) -> str:
    with tempfile.TemporaryDirectory() as nothing_remembered:
        environment = {**os.environ, "ANNOTARY_CACHE": nothing_remembered}
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True
        )
    return result.stdout + result.stderr


def _replaced(text: str, what: str, output: str) -> str:
    start, end = f"<!-- output of: {what} -->\n```text\n", "```\n<!-- end of output -->"
    pattern = re.escape(start) + ".*?" + re.escape(end)
    text, count = re.subn(pattern, lambda _: start + output + end, text, flags=re.S)
    assert count == 1, what
    return text


if __name__ == "__main__":
    main()
