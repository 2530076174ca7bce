"""Time and memory of a piece of work in this process."""

from __future__ import annotations

import threading
import time
from pathlib import Path


class Measured:
    """Measures from when it is made until it is asked."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()
        self._largest = 0.0
        self._is_over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def told(self) -> dict[str, float]:
        """Seconds that have passed (`s`), that all cores have worked (`CPU`), and the largest memory (`MB`)."""
        passed = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        self._is_over.set()
        self._sampler.join()
        return {"s": passed[0], "CPU": passed[1], "MB": self._largest}

    def _sample(self) -> None:
        while True:
            self._largest = max(self._largest, _own_megabytes())
            if self._is_over.wait(0.05):
                return


def _own_megabytes() -> float:
    """Memory of this process without the parts of files that are mapped into it, which the system can drop."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("this system does not tell RssAnon")
