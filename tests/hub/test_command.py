"""Proves by the real command, with the hub's real client in it, what a user sees, and that a token is seen nowhere."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_CANARYcanaryCANARYcanary0123456789"
WRONG = "hf_CANARYwrongCANARYwrong01234567890"

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(hub: Any, tmp_path: Path) -> Command:
    """The command as a user runs it, against the stand-in, with a home of its own."""

    def call(*words: str, token: str | None = TOKEN, **more: str) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        env = {**keep, "HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "COLUMNS": "120", **more}
        if token:
            env["HF_TOKEN"] = token
        line = [sys.executable, "-m", "tunesmith.cli.main", *words]
        return subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)

    return call


def test_a_push_ends_with_its_address_and_how_it_is_loaded_and_the_token_is_nowhere(
    hub: Any, run: Path, command: Command, tmp_path: Path
) -> None:
    done = command("push", str(run), "me/yoda", "--debug")
    assert done.returncode == 0, done.stderr
    assert f"Done. {hub.url}/me/yoda (private, commit " in done.stdout
    assert "--lora-modules yoda=yoda" in done.stdout
    assert len(hub.commits_of("me/yoda")) == 1
    said = done.stdout + done.stderr
    sent = [hub.content("me/yoda", path) for path in hub.repos["me/yoda"].commits[-1][2]]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert "CANARY" not in said
    assert not [content for content in (*sent, *written) if b"CANARY" in content]


def test_a_refused_token_is_one_paragraph_and_not_shown_even_with_a_traceback(run: Path, command: Command) -> None:
    plain, debug = (command("push", str(run), "me/yoda", *more, token=WRONG) for more in ((), ("--debug",)))
    assert plain.returncode == 2
    assert "does not accept your token (from HF_TOKEN)" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert "CANARY" not in plain.stdout + plain.stderr + debug.stdout + debug.stderr


def test_a_dry_run_lists_what_goes_and_what_stays_and_asks_nothing(hub: Any, run: Path, command: Command) -> None:
    listed = command("push", str(run), "me/yoda", "--dry-run", token=None, HF_HUB_OFFLINE="1")
    assert listed.returncode == 0, listed.stderr
    assert "adapter_model.safetensors" in listed.stdout
    assert "a pickle: opening it can run any code" in listed.stdout
    (run / "chat_template.jinja").write_text("{# AKIAABCDEFGHIJKLMNOP #}")
    refused = command("push", str(run), "me/yoda", "--dry-run", token=None)
    assert refused.returncode == 2
    assert "must not be published: chat_template.jinja, line 1: an AWS access key" in refused.stdout
    assert not hub.asked


def test_login_says_who_one_is_and_what_to_do_without_a_terminal(hub: Any, command: Command) -> None:
    known = command("login")
    assert (known.returncode, known.stdout) == (0, "Logged in as me.\n")
    nobody = command("login", token=None)
    assert nobody.returncode == 2
    assert "Set HF_TOKEN" in nobody.stderr
    forced = command("login", "--force")
    assert "HF_TOKEN is set, and goes before any login" in forced.stderr
    assert "CANARY" not in known.stdout + known.stderr + forced.stdout + forced.stderr
