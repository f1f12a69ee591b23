"""Whether the process that locked a file or owns a folder is still alive, also in another container or on another host.

File locks answer that wherever two processes share one table of locks: the same boot of the same kernel, and the same
mounted device. Process ids answer it within one PID namespace. If neither proves anything, the answer is None.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import sys
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: only process ids are used
    fcntl = None  # type: ignore[assignment]

# File systems that only one kernel can mount. After a restart, no process of an earlier boot is alive.
LOCAL = ("apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "ntfs", "overlay", "tmpfs", "xfs", "zfs")
_OWNER = re.compile(r"([0-9a-f]{12}|)\.([0-9a-f]{1,16})\.([0-9a-f]{1,16})\.(\d{1,10})\.(\d{1,20})")
_LOCK_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)


@dataclass(frozen=True)
class Owner:
    """A process, distinguished from those with the same id in another container, on another host or at another time."""

    boot: str  # id of this boot of the kernel; empty if unknown, and then never equal to another one
    device: int  # the mounted file system that its locks are on
    namespace: int  # of process ids
    pid: int
    start: int  # in ticks since boot; 0 if unknown

    @classmethod
    def here(cls, folder: Path) -> Owner:
        """This process, as the owner of a folder."""
        return cls(_boot(), os.stat(folder).st_dev, _namespace(), os.getpid(), _start(os.getpid()))

    @classmethod
    def parse(cls, text: object) -> Owner | None:
        match = _OWNER.fullmatch(text) if isinstance(text, str) else None
        return match and cls(match[1], int(match[2], 16), int(match[3], 16), int(match[4]), int(match[5]))

    def __str__(self) -> str:
        return f"{self.boot}.{self.device:x}.{self.namespace:x}.{self.pid}.{self.start}"

    def alive(self, lock: Path) -> bool | None:
        """Whether the process is alive; None if nothing proves either. It holds `lock` for as long as it lives."""
        taken = is_locked(lock)
        if taken:
            return True
        if taken is False and self._shares_locks(lock.parent):
            return False
        if all((self.boot, self.namespace)) and (self.boot, self.namespace) == (_boot(), _namespace()):
            now = _start(self.pid)
            return alive(self.pid) and (0 in (self.start, now) or self.start == now)
        return None

    def _shares_locks(self, folder: Path) -> bool:
        """Whether a free lock proves that this owner is dead.

        It does if this process sees the owner's locks, or if the owner ran before this machine was restarted.
        """
        if not self.boot or not _boot():
            return False
        if self.boot != _boot():
            return _file_system(folder) in LOCAL
        try:
            return self.device == os.stat(folder).st_dev
        except OSError:
            return False


def pid_space() -> str:
    """A hash of this boot and PID namespace. Within it, equal process ids mean the same process."""
    return hashlib.sha256(f"{_boot()}.{_namespace()}".encode()).hexdigest()[:12]


def create_locked(path: Path) -> int | None:
    """Create a file and lock it. The lock lasts until the returned descriptor is closed.

    None if the file exists, if its folder does not, or if another process took the lock first.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except (FileExistsError, FileNotFoundError):
        return None
    try:
        if _lock(descriptor, exclusive=True) is not False and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock of this file; None if that cannot be determined. Works in read-only folders."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError):
        return None
    try:
        free = _lock(descriptor, exclusive=False)
    finally:
        os.close(descriptor)
    return None if free is None else not free


def _lock(descriptor: int, exclusive: bool) -> bool | None:
    """Lock without waiting. False if another process has the lock, None if locks do not work on this file system."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _LOCK_TAKEN else None
    return True


def alive(pid: int) -> bool:
    """Whether a process with this id is running in this process's PID namespace."""
    if not 0 < pid < 2**31:
        return False
    if os.name == "nt":  # on Windows, signal 0 is Ctrl-C
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat(pid)[:1] not in ("Z", "X")


def _start(pid: int) -> int:
    """When a process started, in ticks since boot, so that changes of the clock do not matter; 0 if unknown."""
    if os.name == "nt":
        import psutil

        return int(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else 0
    fields = _stat(pid).split()
    return int(fields[19]) if len(fields) > 19 else 0


def _stat(pid: int) -> str:
    """The fields of /proc/PID/stat from the state on; empty if /proc is hidden or of another PID namespace."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return text.rpartition(b") ")[2].decode(errors="replace")


@cache
def _boot() -> str:
    """The id of this boot of the kernel; on other systems than Linux, of this machine. Empty if unknown."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except (OSError, ValueError):
        machine = f"{socket.gethostname()}-{uuid.getnode():x}"
        text = "" if sys.platform == "linux" else str(uuid.uuid5(uuid.NAMESPACE_DNS, machine))
    digits = re.sub(r"[^0-9a-f]", "", text)[:12]
    return digits if len(digits) == 12 else ""


def _namespace() -> int:
    """The id of this process's PID namespace; 0 if unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0 if sys.platform == "linux" else 1


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on."""
    import psutil

    real = Path(os.path.realpath(folder))
    try:
        above = [part for part in psutil.disk_partitions(all=True) if real.is_relative_to(part.mountpoint)]
    except (OSError, psutil.Error):
        return ""
    return max(above, key=lambda part: len(part.mountpoint)).fstype.lower() if above else ""
