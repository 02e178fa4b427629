# ruff: noqa: F401, F811 (fixtures of other folders)
"""Proves that no token stands where anyone on the machine can read it, or is handed on: in the arguments of any process, or in the
environment of one that tunesmith starts. Looked at while a push and a server are at work."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.hub.conftest import TOKEN, adapter, hub, run
from tests.serve.conftest import CHAT, Process, adapter_folder, question, tuned_model

KEY = "sk-CANARY-4f1d0a9e7b6c2d3e"

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the list of processes is read from /proc")


class Look:
    """Who has a secret now. arguments: ids of the processes, of all there are, that have one among theirs. handed_on: of the
    children of this process that have one in their environment. own: whether it has one in its own, where its user put it."""

    def __init__(self, pid: int, *secrets: str) -> None:
        process = psutil.Process(pid)
        self.secrets = [secret.encode() for secret in secrets]
        self.arguments = self._holders("cmdline", list(psutil.process_iter()))
        self.handed_on = self._holders("environ", process.children(recursive=True))
        self.own = bool(self._holders("environ", [process]))

    def _holders(self, name: str, processes: list[psutil.Process]) -> set[int]:
        found = set()
        for process in processes:
            with suppress(OSError):  # it has ended
                content = Path(f"/proc/{process.pid}/{name}").read_bytes()
                found |= {process.pid} if any(secret in content for secret in self.secrets) else set()
        return found


@pytest.mark.parametrize("place", ["HF_TOKEN", "the hub's own store"])
def test_while_it_is_pushed_the_token_is_in_no_arguments_and_no_childs_environment(
    hub: Any, run: Path, tmp_path: Path, place: str
) -> None:
    stored = place != "HF_TOKEN"
    home, seen = tmp_path / "home", []
    home.mkdir()
    if stored:
        (home / "token").write_text(TOKEN)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    environment |= {} if stored else {"HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "tunesmith.cli.main", "push", str(run), "me/yoda"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        hub.faults.append(lambda handler: seen.append(Look(process.pid, TOKEN)) is not None)
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert len(hub.commits_of("me/yoda")) == 1
    assert len(seen) > 5
    for look in seen:
        assert (look.arguments, look.handed_on, look.own) == (set(), set(), not stored)


def test_while_it_is_served_the_key_and_the_token_are_in_no_arguments_no_childs_environment_and_no_metrics(
    adapter_folder: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text(KEY)
    with Process(adapter_folder, "--api-key-file", str(key), HF_TOKEN=TOKEN) as served, served.client(KEY) as client:
        with client.stream("POST", CHAT, json=question(model="tiny-yoda", stream=True)) as answer:
            look, key_look = Look(served.process.pid, TOKEN), Look(served.process.pid, KEY)
            assert answer.status_code == 200
            assert "[DONE]" in "".join(answer.iter_text())
        pages = [client.get(path) for path in ("/metrics", "/health", "/openapi.json", "/v1/models")]
        said = served.stop()
    assert (look.arguments, look.handed_on, look.own) == (set(), set(), True)
    assert (key_look.arguments, key_look.handed_on, key_look.own) == (set(), set(), False)
    assert [page.status_code for page in pages] == [200] * 4
    assert "CANARY" not in said + "".join(page.text for page in pages)


@pytest.mark.parametrize("place", ["arguments", "handed_on"])
def test_a_token_in_arguments_or_in_a_childs_environment_would_be_seen(place: str) -> None:
    secret = f"hf_{os.urandom(20).hex()}"
    waiting = [sys.executable, "-c", "input()", *([secret] if place == "arguments" else [])]
    environment = {**os.environ, **({"TOKEN": secret} if place == "handed_on" else {})}
    with subprocess.Popen(waiting, env=environment, stdin=subprocess.PIPE) as child:
        look = Look(os.getpid(), secret)
        child.communicate(b"\n")
    assert (look.arguments, look.handed_on) == (({child.pid}, set()) if place == "arguments" else (set(), {child.pid}))
