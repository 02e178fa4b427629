"""Proves on a real run with hostile names and rows that its pages hold text alone and fetch nothing, and that a token in the
environment ends up nowhere."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

TOKEN = "hf_CANARYcanaryCANARYcanaryCANARY1234"
SCRIPT = "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(1)>"
NAME = "<img src=x onerror=alert(1)>'\"&.jsonl"


class Run(NamedTuple):
    folder: Path
    said: dict[str, str]


DRIVER = """
import contextlib, io, json, sys, traceback
from tunesmith.cli.main import main
said = {}
for name, arguments in json.load(sys.stdin).items():
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(arguments)
        except Exception:
            code = traceback.print_exc()
    said[name] = f"{code}\\n{out.getvalue()}"
print(json.dumps(said))
"""


def tunesmith(here: Path, commands: dict[str, list[str]]) -> dict[str, str]:
    """What each command said, exit code first; all in one process that has the token."""
    environment = {
        **os.environ, "HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "HF_DEBUG": "1", "TRANSFORMERS_VERBOSITY": "debug", "HF_HUB_VERBOSITY": "debug", "TUNESMITH_CACHE": str(here / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-c", DRIVER]
    done = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, input=json.dumps(commands), timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "CANARY" not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def ran(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Training on hostile rows, every command that works on a run, and two that fail with their tracebacks."""
    here = tmp_path_factory.mktemp("traces")
    rows = [{"prompt": f"{SCRIPT} {i}", "completion": f"{SCRIPT} </td></table>"} for i in range(6)]
    (here / NAME).write_text("\n".join(map(json.dumps, rows)))
    model = str(tiny_model_folder)
    said = tunesmith(here, {
        "train": ["train", model, NAME, "--max-steps", "1", "--val-size", "1", "--output-dir", "out", "--debug"],
        "preview": ["preview", model, NAME, "--html", "preview.html"],
        "plan": ["plan", model, NAME],
        "chat": ["chat", "out", "--prompt", "Hi.", "--max-new-tokens", "2"],
        "compare": ["compare", "out", "--rows", "1"],
        "resume": ["resume", "out"],
        "merge": ["merge", "out", "merged", "--dtype", "float32"],
        "export": ["export", "out", "out.gguf", "--type", "adapter", "--ollama"],
        "push --dry-run": ["push", "out", "me/yoda", "--dry-run"],
        "serve --print": ["serve", "out", "--print", "vllm"],
        "doctor": ["doctor"],
        "no such model": ["train", "org/none", NAME, "--debug"],
        "no such data": ["train", model, "org/none", "--debug"],
    })  # fmt: skip
    assert {name: text[0] for name, text in said.items() if text[0] != "0"}.keys() == {"no such model", "no such data"}, said
    assert all("Traceback" in said[name] for name in said if name.startswith("no"))
    return Run(here, said)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", ["out/report.html", "preview.html"])
def test_a_page_holds_text_and_fetches_nothing(ran: Run, name: str) -> None:
    page = Page(ran.folder / name)
    assert "<script>alert(1)</script>" in page.text, "the rows are not shown"
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "svg",
        "audio",
        "video",
    }
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")], (tag, attributes)
        for key in ("src", "href", "srcset", "action", "background", "data", "poster"):
            assert (attributes.get(key) or "data:").startswith(("data:image/png;base64,", "data:")), (tag, attributes)
    styles = " ".join(attributes.get("style") or "" for _, attributes in page.tags) + page.text.partition("<script>")[0]
    assert "url(" not in styles
    assert "@import" not in styles


@pytest.mark.parametrize("name", ["out/report.html", "preview.html"])
def test_a_page_says_so_to_the_browser_too(ran: Run, name: str) -> None:
    policies = [
        attributes["content"]
        for tag, attributes in Page(ran.folder / name).tags
        if tag == "meta" and (attributes.get("http-equiv") or "").lower() == "content-security-policy"
    ]
    assert len(policies) == 1
    rules = dict(rule.strip().partition(" ")[::2] for rule in str(policies[0]).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules.keys() <= {"default-src", "style-src", "img-src", "base-uri", "form-action"}
    assert rules.get("img-src", "data:") == "data:"


def test_a_token_in_the_environment_is_in_no_output_and_no_file(ran: Run) -> None:
    for name, text in ran.said.items():
        assert "CANARY" not in text, name
    files = [path for path in ran.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"CANARY" in path.read_bytes()] == []


def test_a_token_is_no_setting_and_no_argument() -> None:
    """What is an argument is in the list of processes."""
    from tunesmith.recipe import ALIASES

    assert [name for name in ALIASES if "hub_token" in name or name in ("token", "hf_token", "api_key", "use_auth_token")] == []


def test_no_command_takes_a_token_as_an_argument() -> None:
    """`serve` and `push` read theirs from a file, the environment or the hub's own store."""
    from tunesmith.cli import main

    source = Path(main.__file__).parent
    for path in source.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert '"--token"' not in text, path.name
        assert '"--hf-token"' not in text, path.name
