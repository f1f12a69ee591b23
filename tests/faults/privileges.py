"""Work of a process that may not override the permissions of files, as a test run by root could."""

from __future__ import annotations

import ctypes
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest

VERSION, OVERRIDE_AND_SEARCH = 0x20080522, 0b110  # of the kernel's capabilities, and their bits


def forked(work: Callable[[], Any], unprivileged: bool = True) -> Any:
    """What the work answers, plain JSON, in a fork of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reader)
            if unprivileged:
                _drop()
            with os.fdopen(writer, "w") as file:
                json.dump(work(), file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 77:
        pytest.skip("this system does not let root give up its rights over files")
    assert code == 0, text
    return json.loads(text)


def _drop() -> None:
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    if not hasattr(libc, "capget") or libc.capget(header, sets):
        os._exit(77)
    sets[0] &= ~OVERRIDE_AND_SEARCH
    if libc.capset(header, sets):
        os._exit(77)
