"""Proves, with the hub's real client, that data that cannot be had from the hub are told at once and with the reason."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tunesmith.data.sources import check_name
from tunesmith.errors import DataError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is on this machine yet."""
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def rows(hub: Any) -> Any:
    """A data set of the stand-in's."""
    from tests.hub.conftest import Repo

    hub.repos["org/rows"] = Repo(private=False)
    return hub.repos["org/rows"]


@pytest.mark.parametrize("name", ["org/rows", "org/rows@v2"])
def test_data_that_are_there_are_asked_for_once(hub: Any, rows: Any, name: str) -> None:
    check_name(name, "train")
    assert hub.count("GET", "/api/datasets/org/rows") == 1


@pytest.mark.parametrize("name", ["org/rowz", "my rows", "a/b/c", "rowz"])
def test_what_is_no_data_set_of_the_hub_is_told(hub: Any, rows: Any, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} is neither .* it has no such data set, or a private one\. Check the name"):
        check_name(name)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RevisionNotFound", "no revision 'v9' of it"),
        (403, "GatedRepo", "only to those who accepted"),
    ],
)
def test_what_the_hub_refuses_is_told_in_words(hub: Any, rows: Any, status: int, code: str, says: str) -> None:
    hub.faults.append(lambda request: request.answer(status, {}, {"X-Error-Code": code}) or True)
    with pytest.raises(DataError, match=says):
        check_name("org/rows@v9")


def test_a_hub_that_cannot_be_reached_is_asked_once_and_told(hub: Any, waits: list[float]) -> None:
    hub.faults.append(lambda request: request.cut())
    with pytest.raises(DataError, match=r"it could not be asked\. .*your network"):
        check_name("org/rows")
    assert (hub.count("GET", "org/rows"), waits) == (1, [])


def test_offline_nothing_is_asked(hub: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="it could not be asked"):
        check_name("org/rows")
    assert not hub.asked


def test_offline_for_datasets_alone_nothing_is_asked_either(hub: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(DataError, match="it could not be asked: HF_DATASETS_OFFLINE is set"):
        check_name("org/rows")
    assert not hub.asked


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("http_proxy", "ftp://127.0.0.1", "Unknown scheme for proxy"),
        ("http_proxy", "http://127.0.0.1:port", "Invalid port"),
        ("http_proxy", "socks5://127.0.0.1:9", "socksio|could not be asked"),
        ("SSL_CERT_FILE", "nowhere.pem", "No such file"),
        ("HF_TOKEN", "hf_é", "can't encode"),
    ],
)
def test_a_way_to_the_hub_that_cannot_be_taken_is_told(
    hub: Any, rows: Any, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, says: str
) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv(setting, value)
    close_session()
    with pytest.raises(DataError, match=says):
        check_name("org/rows")
    assert not hub.asked


def test_a_folder_that_cannot_be_looked_into_is_left_to_those_who_keep_data_there(
    hub: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", "long" * 100)
    check_name("org/rows")
    assert not hub.asked


@pytest.mark.parametrize(("kept", "name"), [("org___rows", "org/Rows"), ("rows", "rows")])
def test_what_may_be_kept_here_from_before_is_left_to_those_who_keep_it(hub: Any, home: Path, kept: str, name: str) -> None:
    (home / "datasets" / kept).mkdir(parents=True)
    check_name(name)
    assert not hub.asked
    with pytest.raises(DataError):
        check_name("others/rows")


def test_so_is_a_hub_at_fault(hub: Any, rows: Any) -> None:
    hub.faults.append(lambda request: request.answer(503) or True)
    check_name("org/rows")


@pytest.mark.parametrize("name", ["yoda", "here.jsonl", "here", "h*.jsonl"])
def test_what_is_on_this_machine_is_not_asked_for(hub: Any, name: str) -> None:
    Path("here").mkdir()
    Path("here.jsonl").touch()
    check_name(name)
    assert not hub.asked
