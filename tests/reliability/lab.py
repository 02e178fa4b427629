"""A workshop for accidents: one process with everything imported, which forks a child for every request and lets it come to
grief where the request says. One JSON request a line on stdin, one JSON answer a line on stdout.

    {"call": "train", "settings": {…}}, {"call": "resume", "run": "folder", "settings": {}}, or {"call": "saves", "root": "folder"}
    for two checkpoints of a small made-up state, of which only the newest is kept
    "crash": {"update": n, "signal": 9}           after update n, before anything is saved of it
             {"pass": n, "signal": 9}             in the n-th micro-batch
             {"evaluation": n, "signal": 9}       when the n-th evaluation begins
             {"save": n, "file": m, "signal": 9}  before file operation m of save n (both from 1)
             {"seconds": s, "signal": 9}          from outside, after so long
             {"save": n, "full": m}               the disk is full from write m of save n on; "errno": another reason
             {"event": "rows", "signal": 15}      at the first note or progress that begins so
             {"moment": n, "signal": 9}           at the n-th of all notes, progress and changes of folders together (from 1)
             {"update": n, "signals": [15, 15]}   several after another
             {"file_bytes": n}                    no file can be larger
             {"update": n, "remove": "folder"}    a folder vanishes then
             {"update": n, "append": ["file", "text"]}
             {"versions": {"torch": "1.0"}}       what libraries say of themselves
             {"rows_a_shard": n}                  of rows that are streamed
             {"shard": n, "signals": [2, 15]}     while shard n (from 1) is read, which has no end then
             {"pass": n, "raises": "memory"}      in the n-th micro-batch memory runs out; "device": the GPU is lost
             {"gradient": n, "poison": "nan"}     a number of the gradient of update n is that
             {"weight": n, "poison": "inf"}       a number of the adapter is that after update n

The answer: how the process ended (exit code, or -signal), its error in words, the notes it gave, and how many "moments" it had.
"""

import errno
import importlib.metadata
import itertools
import json
import os
import resource
import shutil
import signal
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
from tunesmith.data import stream
from tunesmith.errors import TunesmithError
from tunesmith.events import Note, Progress
from tunesmith.training import guard, keeper, loop
from tunesmith.training.interrupt import exit_code, terminable
from tunesmith.training.loop import StepReport
from tunesmith.training.state import Position, State
from tunesmith.training.update import EagerUpdate

TELL = os.write  # also when accidents befall os.write
OPERATIONS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir")


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which what a shell starts in the background ignores
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
    moments = Moments(crash)
    arrange(crash)

    def watch(event: object) -> None:
        moments.one_more()
        if isinstance(event, Note):
            notes.append(event.text)
        said = event.text if isinstance(event, Note) else event.what if isinstance(event, Progress) else ""
        if "event" in crash and said.startswith(crash["event"]):
            os.kill(os.getpid(), crash["signal"])
        if isinstance(event, StepReport) and event.step == crash.get("update"):
            happen(crash)

    try:
        with terminable():
            if request["call"] == "saves":
                make_saves(Path(request["root"]))
            elif request["call"] in ("merge", "export_gguf"):
                named = {"ollama": True} if request.get("ollama") else {}
                getattr(ts, request["call"])(Path(request["run"]), Path(request["out"]), request["kind"], watch, **named)
            else:
                call, first = (ts.train, ()) if request["call"] == "train" else (ts.resume, (request["run"],))
                run = call(*first, watch=watch, **request.get("settings", {}))
                code = 128 + run.stopped if run.stopped else 0
    except KeyboardInterrupt as stop:
        code = exit_code(stop)
    except TunesmithError as raised:
        code, error = 2, str(raised)
    except BaseException as raised:
        code, error = 1, repr(raised)
    TELL(writing, json.dumps({"error": error, "notes": notes, "moments": moments.count}).encode())
    os._exit(code)


class Moments:
    """count: of notes, progress and changes of folders so far. At the one asked for the process ends."""

    def __init__(self, crash: dict) -> None:
        self.crash, self.count = crash, 0
        for name in ("fsync", "mkdir", "rename", "replace", "unlink", "rmdir") if "moment" in crash else ():
            setattr(os, name, self._counting(getattr(os, name)))

    def one_more(self) -> None:
        self.count += 1
        if self.count == self.crash.get("moment"):
            os.kill(os.getpid(), self.crash["signal"])

    def _counting(self, function):
        return lambda *arguments, **named: (self.one_more(), function(*arguments, **named))[1]


def happen(crash: dict) -> None:
    """What was arranged for after an update."""
    if "remove" in crash:
        shutil.rmtree(crash["remove"])
    if "append" in crash:
        path, text = crash["append"]
        with open(path, "a") as file:
            file.write(text)
    for number in crash.get("signals", [crash["signal"]] if "signal" in crash else []):
        os.kill(os.getpid(), number)


def make_saves(root) -> None:
    for step in (1, 2):
        tensors = {"x": torch.full((1000,), float(step))}
        state = State(Position(step), tensors, tensors, {}, {"cpu": torch.get_rng_state()})
        keeper.save_checkpoint(root, state, {}, b"{}\n" * step)
        keeper.keep_newest(root, 1)


def arrange(crash: dict) -> None:
    """Put the accident where it is to happen."""
    if "pass" in crash:
        accident = (lambda: fail(crash["raises"])) if "raises" in crash else (lambda: os.kill(os.getpid(), crash["signal"]))
        guard.check_loss = counted(guard.check_loss, crash["pass"], accident)
    if "evaluation" in crash:
        loop.evaluate = counted(loop.evaluate, crash["evaluation"], lambda: os.kill(os.getpid(), crash["signal"]))
    if "poison" in crash:
        poison(crash)
    if "file_bytes" in crash:
        resource.setrlimit(resource.RLIMIT_FSIZE, (crash["file_bytes"],) * 2)
    if "rows_a_shard" in crash:
        stream.Stream.__init__.__defaults__ = (crash["rows_a_shard"], stream.SHARD_CHARACTERS)
    if "shard" in crash:
        stream.up_to = without_end(stream.up_to, crash)
    if "versions" in crash:
        version = importlib.metadata.version
        importlib.metadata.version = lambda name: crash["versions"].get(name) or version(name)
    if "save" in crash:
        keeper.save_checkpoint = saving(keeper.save_checkpoint, crash)


def fail(what: str) -> None:
    """What torch raises on a GPU when that happens."""
    if what == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")


def poison(crash: dict) -> None:
    """Put a number that is not finite where the request says."""
    finish, updates = EagerUpdate.finish, iter(range(1, 10**9))

    def poisoned(self, rate: float) -> None:
        number, parameter = next(updates), list(self.parameters.values())[-1]
        if number == crash.get("gradient"):
            parameter.grad.view(-1)[3] = float(crash["poison"])
        finish(self, rate)
        if number == crash.get("weight"):
            with torch.no_grad():
                parameter.view(-1)[3] = float(crash["poison"])

    EagerUpdate.finish = poisoned


def without_end(up_to, crash: dict):
    """Shards of which one is its first row over and over, after the signals."""
    shards = iter(range(1, 10**9))

    def rows(conversations, *limits):
        if next(shards) != crash["shard"]:
            yield from up_to(conversations, *limits)
            return
        first = next(conversations)
        happen(crash)
        yield from itertools.repeat(first, 50_000)
        os._exit(1)  # nobody was to wait for this

    return rows


def counted(function, number: int, accident):
    """The function, with an accident at its call of this number."""
    calls = iter(range(1, 10**9))

    def wrapped(*arguments, **named):
        if next(calls) == number:
            accident()
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
    """From the n-th write on there is no room, or another reason not to."""
    writes, write = iter(range(1, 10**9)), os.write
    number = getattr(errno, crash.get("errno", "ENOSPC"))

    def full(handle: int, content) -> int:
        if next(writes) >= crash["full"]:
            raise OSError(number, os.strerror(number))
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
