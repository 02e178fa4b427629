"""One process a run: the lock of a run's folder, which ends with the process that holds it."""

import json
import os
import socket
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tunesmith.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class RunLock:
    """Held while a process writes into a run's folder: ``with RunLock(folder): …``.

    The file ``checkpoints/lock`` names the process by id, start time and host. The system's own lock on it ends with the
    process, however it ends. Where there is none (Windows, some network disks), the named process is looked for instead.

    Raises:
        RunError: another process holds it; its id is in the message.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / "checkpoints" / "lock"

    def __enter__(self) -> "RunLock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _free(self.handle):
            holder = describe(_read(self.handle))
            os.close(self.handle)
            raise RunError(f"{self.run} is in use by {holder}.", "Wait for it to end, or stop it.")
        _write(self.handle, json.dumps({"pid": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname()}))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The file stays: were it removed, a process that has just opened it would lock what nobody else can see.
        os.ftruncate(self.handle, 0)
        os.close(self.handle)


def holder_of(run: Path) -> str | None:
    """The process that holds the lock of a run's folder, in words; None if none does."""
    try:
        handle = os.open(run / "checkpoints" / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _free(handle) else describe(_read(handle))
    finally:
        os.close(handle)


def describe(record: dict[str, Any]) -> str:
    """A process in words, as far as it is known."""
    if not isinstance(record.get("pid"), int):
        return "another process"
    started = record.get("started")
    since = f", started {datetime.fromtimestamp(started):%Y-%m-%d %H:%M:%S}" if isinstance(started, (int, float)) else ""
    return f"process {record['pid']} on {record.get('host')}{since}"


def _free(handle: int) -> bool:
    """Whether the lock could be taken; it then is."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:
            pass  # a disk without locks
    return not _alive(_read(handle))


def _alive(record: dict[str, Any]) -> bool:
    """Whether the process of a record still runs; one of another host may."""
    pid, started = record.get("pid"), record.get("started")
    if not isinstance(pid, int):
        return False
    if record.get("host") != socket.gethostname():
        return True
    return psutil.pid_exists(pid) and (started is None or _started(pid) == started)


def _started(pid: int) -> float | None:
    """When a process began, seconds since 1970: another one may have got its id since."""
    try:
        return round(psutil.Process(pid).create_time(), 2)
    except psutil.Error:
        return None


def _read(handle: int) -> dict[str, Any]:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        record = json.loads(os.read(handle, 4096))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, text.encode())
    os.fsync(handle)
