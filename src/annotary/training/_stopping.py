"""Asked to stop, a run finishes its step and saves first; asked again, it ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class StopRequests:
    """Notes while the context lasts that a person or the system asks to stop.

    Args:
        is_active: False changes nothing: of several processes each may be asked at another step, and they would wait
            for each other.
    """

    def __init__(self, *, is_active: bool = True) -> None:
        self._is_active = is_active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        self._asked: int | None = None

    def __enter__(self) -> Self:
        """Listen."""
        for name in _SIGNALS if self._is_active else ():
            if not hasattr(signal, name):
                continue
            number = getattr(signal, name)
            if signal.getsignal(number) not in (None, signal.SIG_IGN):  # nohup ignores one
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Listen no more."""
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, before)

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked is not None

    def obey(self) -> None:
        """Do what the signal would have done."""
        asked = self._asked
        self.__exit__(None, None, None)
        if asked is not None:
            signal.raise_signal(asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            self.obey()
        self._asked = number
