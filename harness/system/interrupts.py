"""Remembering Ctrl-C: some libraries swallow a KeyboardInterrupt during their import, and the command would go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupts:
    """Whether the user pressed Ctrl-C in this process."""

    def __init__(self) -> None:
        self.seen = self.watching = False

    def heed(self) -> None:
        """Handle Ctrl-C from now on, unless another handler is set already."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self.watching = True

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def stop(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed earlier and swallowed."""
        if self.seen:
            raise KeyboardInterrupt

    def caused(self, error: BaseException) -> bool:
        """Whether this is the user's Ctrl-C, and not a KeyboardInterrupt that code raised itself."""
        return isinstance(error, KeyboardInterrupt) and (self.seen or not self.watching)

    @contextmanager
    def as_keyboard_interrupt(self) -> Iterator[None]:
        """After a Ctrl-C, raise KeyboardInterrupt instead of the secondary error that it caused."""
        try:
            yield
        except Exception:
            self.stop()
            raise


interrupts = Interrupts()
