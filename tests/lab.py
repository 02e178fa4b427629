"""A workshop for accidents: one process with everything imported, which forks a child for every request and lets it come to
grief where the request says. One JSON request a line on stdin, one JSON answer a line on stdout.

    {"call": "train", "settings": {…}}, {"call": "resume", "run": "folder", "settings": {}}, or {"call": "saves", "root": "folder"}
    for two checkpoints of a small made-up state, of which only the newest is kept
    "crash": {"update": n, "signal": 9}           after update n, before anything is saved of it
             {"pass": n, "signal": 9}             in the n-th micro-batch
             {"evaluation": n, "signal": 9}       when the n-th evaluation begins
             {"save": n, "file": m, "signal": 9}  before file operation m of save n (both from 1)
             {"seconds": s, "signal": 9}          from outside, after so long
             {"save": n, "full": m}               the disk is full from write m of save n on

The answer: how the process ended (exit code, or -signal), its error in words, and the notes it gave.
"""

import errno
import json
import os
import sys
import threading
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import matplotlib.figure  # noqa: F401 (what a run imports when it needs it is imported once)
import peft  # noqa: F401
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import tunesmith as ts
from tunesmith.errors import TunesmithError
from tunesmith.events import Note
from tunesmith.training import guard, keeper, loop
from tunesmith.training.loop import StepReport
from tunesmith.training.state import Position, State

TELL = os.write  # also when accidents befall os.write
OPERATIONS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir")


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(request: dict) -> dict:
    """Fork a child for the request and wait for its end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work(request, writing)
    os.close(writing)
    crash = request.get("crash", {})
    if "seconds" in crash:
        killer = threading.Timer(crash["seconds"], lambda: os.kill(child, crash["signal"]))
        killer.start()
    with os.fdopen(reading) as told:
        text = told.read()
    _, status = os.waitpid(child, 0)
    if "seconds" in crash:
        killer.cancel()
        killer.join()
    return {"code": os.waitstatus_to_exitcode(status), "error": None, "notes": [], **(json.loads(text) if text else {})}


def work(request: dict, writing: int) -> None:
    """What the child does; it does not return."""
    notes: list[str] = []
    crash, code, error = request.get("crash", {}), 0, None
    arrange(crash)

    def watch(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        if isinstance(event, StepReport) and event.step == crash.get("update"):
            os.kill(os.getpid(), crash["signal"])

    try:
        if request["call"] == "train":
            ts.train(watch=watch, **request["settings"])
        elif request["call"] == "saves":
            make_saves(Path(request["root"]))
        else:
            ts.resume(request["run"], watch=watch, **request.get("settings", {}))
    except TunesmithError as raised:
        code, error = 2, str(raised)
    except BaseException as raised:
        code, error = 1, repr(raised)
    TELL(writing, json.dumps({"error": error, "notes": notes}).encode())
    os._exit(code)


def make_saves(root) -> None:
    for step in (1, 2):
        tensors = {"x": torch.full((1000,), float(step))}
        state = State(Position(step), tensors, tensors, {}, {"cpu": torch.get_rng_state()})
        keeper.save_checkpoint(root, state, {}, b"{}\n" * step)
        keeper.keep_newest(root, 1)


def arrange(crash: dict) -> None:
    """Put the accident where it is to happen."""
    if "pass" in crash:
        guard.check_loss = counted(guard.check_loss, crash["pass"], crash["signal"])
    if "evaluation" in crash:
        loop.evaluate = counted(loop.evaluate, crash["evaluation"], crash["signal"])
    if "file" in crash or "full" in crash:
        keeper.save_checkpoint = saving(keeper.save_checkpoint, crash)


def counted(function, number: int, signal_number: int):
    """The function, whose call of this number does not come to pass."""
    calls = iter(range(1, 10**9))

    def wrapped(*arguments, **named):
        if next(calls) == number:
            os.kill(os.getpid(), signal_number)
        return function(*arguments, **named)

    return wrapped


def saving(save, crash: dict):
    """Saves of which one meets with the accident; what comes after it within the same save counts too."""
    saves = iter(range(1, 10**9))

    def wrapped(*arguments, **named):
        if next(saves) == crash["save"]:
            (fill_disk if "full" in crash else count_files)(crash)
        return save(*arguments, **named)

    return wrapped


def fill_disk(crash: dict) -> None:
    """From the n-th write on there is no room."""
    writes, write = iter(range(1, 10**9)), os.write

    def full(handle: int, content) -> int:
        if next(writes) >= crash["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content)

    os.write = full


def count_files(crash: dict) -> None:
    """Count file operations from here on. At the one asked for the power fails: files that were not synced lose their second
    half, a rename whose folder was not synced is undone, and the process ends."""
    operations, dirty, renamed, paths = iter(range(1, 10**9)), set(), [], {}

    def fail() -> None:
        for path in dirty:
            with real["_open"](path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
        for source, target in reversed(renamed):
            real["rename"](target, source)
        os.kill(os.getpid(), crash["signal"])
        time.sleep(60)

    def wrap(name: str):
        def wrapped(*arguments, **named):
            if next(operations) == crash["file"]:
                fail()
            result = real[name](*arguments, **named)
            after(name, arguments, result)
            return result

        return wrapped

    def after(name: str, arguments: tuple, result: object) -> None:
        if name == "open":
            paths[result] = os.fspath(arguments[0])
        elif name == "write":
            dirty.add(paths[arguments[0]])
        elif name == "fsync":
            path = paths[arguments[0]]
            dirty.discard(path)
            renamed[:] = [pair for pair in renamed if os.path.dirname(pair[1]) != path]
        elif name in ("rename", "replace"):
            renamed.append(tuple(map(os.fspath, arguments[:2])))

    real = {name: getattr(os, name) for name in OPERATIONS} | {"_open": open}
    for name in OPERATIONS:
        setattr(os, name, wrap(name))


if __name__ == "__main__":
    main()
