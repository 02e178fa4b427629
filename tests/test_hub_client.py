"""Proves that an environment in which the hub cannot be asked is told by its variables, and before anything falls over them."""

import subprocess
import sys

import pytest

import tunesmith
from tunesmith.cli.main import main
from tunesmith.errors import HubError
from tunesmith.hub_client import SECONDS, check_environment


@pytest.mark.parametrize(
    "address", ["https://huggingface.co", "http://127.0.0.1:8080/", "HTTPS://hub.example/a", "http://[::1]:80"]
)
def test_an_address_of_a_hub_is_taken(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    check_environment()


@pytest.mark.parametrize(
    "address",
    ["foo", "http//x", "", "http://", "http://[::1", "hub.example:80", "https://a:b", "ftp://a", "https://a.b ", "http://a:0"],
)
def test_what_is_no_address_is_told_with_the_variable_and_what_to_type(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(HubError, match="which is not the address of a hub") as caught:
        check_environment()
    assert caught.value.what.startswith(f"HF_ENDPOINT is {address!r}")
    assert "export HF_ENDPOINT=https://huggingface.co" in caught.value.fix


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_that_are_none_are_told_with_the_variable_and_what_to_type(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for good in ("10", " 3 ", "0"):
        monkeypatch.setenv(name, good)
        check_environment()
    for bad in ("abc", "", "1.5", "-1", "10s"):
        monkeypatch.setenv(name, bad)
        with pytest.raises(HubError, match=rf"{name} is {bad!r}, which is not a whole number .* export {name}=10"):
            check_environment()


COMMANDS = [
    ["train", "org/none", "yoda"], ["preview", "smollm2-135m", "org/none"], ["plan"], ["chat", "org/none"],
    ["push", "run", "me/run"], ["login"], ["doctor"],
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [("HF_ENDPOINT", "http//x"), ("HF_HUB_ETAG_TIMEOUT", "abc")])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_so_in_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"error: {name} is '{value}', which is not ")


def test_so_does_python_before_the_client_is_imported() -> None:
    code = (
        "import os; os.environ['HF_HUB_ETAG_TIMEOUT'] = 'abc'\nimport tunesmith\n"
        "from tunesmith.errors import HubError\ntry:\n    tunesmith.train()\nexcept HubError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("HF_HUB_ETAG_TIMEOUT is 'abc'")


def test_a_good_environment_is_no_hindrance() -> None:
    assert callable(tunesmith.train)


def test_help_is_given_whatever_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http//x")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    assert "usage: tunesmith train" in capsys.readouterr().out
