"""A Ctrl-C is remembered: some libraries swallow one that falls into their import, and the work would go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupts:
    def __init__(self) -> None:
        self.seen = self.heeding = False

    def heed(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody decided already
            signal.signal(signal.SIGINT, self._note)
            self.heeding = True

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def stop(self) -> None:
        """Raise the one that was swallowed, if one was."""
        if self.seen:
            raise KeyboardInterrupt

    def typed(self, error: BaseException) -> bool:
        """Whether this is the user's Ctrl-C, and not a KeyboardInterrupt that some code raised itself."""
        return isinstance(error, KeyboardInterrupt) and (self.seen or not self.heeding)

    @contextmanager
    def told_apart(self) -> Iterator[None]:
        """After a Ctrl-C, raise KeyboardInterrupt instead of the secondary error that it caused."""
        try:
            yield
        except Exception:
            self.stop()
            raise


interrupts = Interrupts()
