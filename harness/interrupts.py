"""A Ctrl-C is remembered: some libraries swallow one that falls into their import, and the work would go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupts:
    def __init__(self) -> None:
        self.seen = False

    def heed(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody decided already
            signal.signal(signal.SIGINT, self._note)

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def stop(self) -> None:
        """Raise the one that was swallowed, if one was."""
        if self.seen:
            raise KeyboardInterrupt

    @contextmanager
    def told_apart(self) -> Iterator[None]:
        """What fails after a Ctrl-C failed of it: a thread that was only starting cannot be joined."""
        try:
            yield
        except Exception:
            self.stop()
            raise


interrupts = Interrupts()
