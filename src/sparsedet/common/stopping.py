"""Ending a run from outside: SIGTERM and the first Ctrl-C are requests that it follows where nothing gets lost."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from sparsedet.common.errors import SparseDetError


class Stopped(SparseDetError):
    """A run followed a request to stop.

    Attributes:
        exit_code: by the convention of shells: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[Any, ...]:
        return Stopped, (str(self), self.exit_code - 128)


class StopRequests:
    """Notes signals while it is entered; a second Ctrl-C is not waited with.

    Outside the main thread, which alone receives signals, it notes none.

    Args:
        say: told what a first Ctrl-C does, since a step may take a while.

    Attributes:
        number: the signal that came first, None before.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.number: int | None = None
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            self._say("stopping after this step; Ctrl-C again ends at once")
        self.number = self.number or number
