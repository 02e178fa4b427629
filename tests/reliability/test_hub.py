# ruff: noqa: F401, F811 (fixtures of another folder)
"""A hub that takes a request and never answers: it is let go after a while, and nothing is called pushed."""

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.hub.conftest import adapter, hub, run, waits

from tunesmith.errors import HubError
from tunesmith.export import hub as pushing
from tunesmith.export.publish import publish

# The hub's own client gives its bytes to httpx by a name that httpx would have it drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize("part", ["/whoami-v2", "/storage/", "/commit/"])
def test_a_hub_that_stalls_is_let_go_and_the_next_push_completes_it(
    hub: Any, run: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    over = threading.Event()

    def stall(handler: Any) -> bool:
        return part in handler.route and over.wait(60) and handler.cut()

    monkeypatch.setattr(pushing, "STALL", 0.2)
    hub.faults.append(stall)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(HubError, match="cannot be reached"):
        publish(run, "me/yoda")
    over.set()
    hub.faults.clear()
    assert not hub.repos or hub.commits_of("me/yoda") == []
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert publish(run, "me/yoda").changed
    assert len(hub.commits_of("me/yoda")) == 1
