"""Steps that do little, or go wrong in the way that a test asks for; worker processes import them from here."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from annotary.curation.steps import Tally
from annotary.curation.tables import Part, PartWriter, Rows
from annotary.errors import AnnotaryError, ImageError, MissingExtra, OutputError, UsageError


class Odd(AnnotaryError):
    """An error that pickle cannot copy."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


@dataclass
class Copy:
    """Copies the rows of parts, and leaves a line of each try in `log`.

    Attributes:
        log: A folder.
        wrong: Names of parts to what goes wrong there.
        limit: A setting.
        pause: Seconds that a part takes.
    """

    log: str
    wrong: dict[str, str] = field(default_factory=dict)
    limit: int = 1
    pause: float = 0.0
    name: str = "copy"

    def settings(self) -> dict[str, Any]:
        return {"limit": self.limit, "columns": None}

    def run(self, part: Part, target: Path) -> Tally:
        tries = Path(self.log) / part.name
        with tries.open("a") as file:
            file.write(f"{os.getpid()}\n")
        tally = Tally()
        rows = Rows(part)
        with PartWriter(target) as writer:
            for batch in rows.batches():
                writer.write(batch)
                tally.rows_in += batch.num_rows
                self._go_wrong(part.name, len(tries.read_text().splitlines()))
                if self.pause:
                    time.sleep(self.pause)
        tally.rows_out = writer.rows
        tally.skip(rows.skipped)
        tally.beside = {"bytes": Path(part.file).stat().st_size, "told": [1]}
        return tally

    def _go_wrong(self, name: str, tried: int) -> None:
        what = self.wrong.get(name, "")
        if what == "exit":
            os._exit(3)
        if what == "kill" or (what == "kill once" and tried == 1):
            print("the memory is at its end", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "wait to be killed" and tried == 1:
            time.sleep(60)
        if what == "say much":
            for number in range(20_000):
                print("noise", number)
                print("noise", number, file=sys.stderr)
            os.system("echo more noise")
        errors: dict[str, BaseException] = {
            "usage": UsageError("this part lacks the column 'text'"),
            "output": OutputError("the disk is full"),
            "extra": MissingExtra("Curating", "curate"),
            "odd": Odd("one", "two"),
            "image": ImageError("no image"),
            "bug": ZeroDivisionError("a bug"),
            "memory": MemoryError(),
        }
        if what in errors:
            raise errors[what]


def make_tables(folder: Path, count: int, rows: int = 20) -> Path:
    """Tables `00.jsonl`, `01.jsonl`, ...; one line of each is broken."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        lines = [
            json.dumps({"id": f"{number}-{row}", "text": "some words " * 3}) for row in range(rows)
        ]
        lines.insert(3, "{broken")
        (folder / f"{number:02}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder, and what they hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
