"""Proves, with the hub's real client, that a model that cannot be had from the hub is told at once and with the reason."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tunesmith.base.catalog import resolve
from tunesmith.base.hub_model import check_on_hub
from tunesmith.errors import ModelError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is on this machine yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(hub: Any) -> Any:
    """A model of the stand-in's."""
    from tests.hub.conftest import Repo

    hub.repos["org/name"] = Repo(private=False)
    hub.repos["org/name"].commit("config", {"config.json": ("regular", b"{}")})
    return hub.repos["org/name"]


def test_a_model_that_is_there_is_asked_for_once(hub: Any, model: Any) -> None:
    check_on_hub(resolve("org/name"))
    asked = len(hub.asked)
    assert asked
    check_on_hub(resolve("org/name"))
    assert len(hub.asked) == asked


def test_what_is_no_model_of_the_hub_is_told_with_the_reason(hub: Any, model: Any) -> None:
    model.commits[:] = model.commits[:1]
    with pytest.raises(ModelError, match=r"no model org/name: .*holds no config\.json"):
        check_on_hub(resolve("org/name"))
    with pytest.raises(ModelError, match=r"no model org/nane: .*it has no such model, or a private one") as caught:
        check_on_hub(resolve("org/nane"))
    assert "tunesmith login" in caught.value.fix


def test_a_hub_that_cannot_be_asked_is_told(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="it could not be asked"):
        check_on_hub(resolve("org/name"))
    assert not hub.asked


@pytest.mark.parametrize(
    ("value", "says"), [("http://127.0.0.1:port", "Invalid port"), ("socks5://127.0.0.1:9", "socksio|could not be asked")]
)
def test_a_proxy_that_is_none_is_told(hub: Any, model: Any, monkeypatch: pytest.MonkeyPatch, value: str, says: str) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", value)
    close_session()
    with pytest.raises(ModelError, match=says):
        check_on_hub(resolve("org/name"))
    assert not hub.asked


def test_a_hub_that_cannot_be_reached_is_asked_once_and_told(hub: Any, model: Any, waits: list[float]) -> None:
    hub.faults.append(lambda request: request.cut())
    with pytest.raises(ModelError, match="it could not be asked"):
        check_on_hub(resolve("org/name"))
    assert (hub.count("HEAD", "org/name"), waits) == (1, [])


def test_a_hub_at_fault_is_asked_again(hub: Any, model: Any, waits: list[float]) -> None:
    hub.faults.append(lambda request: hub.count("HEAD", "org/name") <= 3 and (request.answer(503) or True))
    check_on_hub(resolve("org/name"))
    assert waits


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RevisionNotFound", "no revision 'v9' of it"),
        (403, "GatedRepo", "only to those who accepted"),
    ],
)
def test_what_the_hub_refuses_is_told_in_words(hub: Any, model: Any, status: int, code: str, says: str) -> None:
    hub.faults.append(lambda request: request.answer(status, {}, {"X-Error-Code": code}) or True)
    with pytest.raises(ModelError, match=says):
        check_on_hub(resolve("org/name@v9"))
