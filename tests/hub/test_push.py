"""Proves with the hub's own client that a push arrives once and whole, and that what goes wrong is said in plain terms."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.errors import HubError, RunError, TunesmithError
from tunesmith.export.hub import PATIENCE
from tunesmith.export.publish import prepare, publish

# the hub's client about itself
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

GOES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "generation_config.json",
    "metrics.jsonl", "run.yaml", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


def files_on(hub: Any, repo: str) -> set[str]:
    return set(hub.repos[repo].commits[-1][2]) - {".gitattributes"}


def failing(hub: Any, part: str, times: int, act: Callable[[Any], object], method: str = "POST") -> None:
    """Let the next requests of a kind fail."""
    left = [times]

    def fault(handler: Any) -> bool:
        if handler.command == method and part in handler.route and left[0]:
            left[0] -= 1
            act(handler)
            handler.close_connection = True
            return True
        return False

    hub.faults.append(fault)


def drain(handler: Any) -> None:
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


def answering(status: int, headers: dict[str, str] | None = None, content: Any = None) -> Callable[[Any], None]:
    def act(handler: Any) -> None:
        drain(handler)
        handler.answer(status, content or {"error": "so it is"}, headers)

    return act


def test_a_run_is_there_whole_private_and_in_one_commit(hub: Any, run: Path) -> None:
    told: list[str] = []
    pushed = publish(run, "me/yoda", told=told.append)
    assert (pushed.private, pushed.created, pushed.changed) == (True, True, True)
    assert pushed.url == f"{hub.url}/me/yoda"
    assert pushed.commit == hub.repos["me/yoda"].head
    assert hub.commits_of("me/yoda") == ["Push yoda-1 with tunesmith"]
    assert files_on(hub, "me/yoda") == GOES
    assert hub.content("me/yoda", "adapter_model.safetensors") == (run / "adapter_model.safetensors").read_bytes()
    assert told[0] == "Logged in as me"


def test_it_is_public_only_when_asked_and_an_existing_one_stays_as_it_is(hub: Any, run: Path) -> None:
    assert not publish(run, "me/open", public=True).private
    publish(run, "me/closed")
    (run / "tokenizer_config.json").write_text("{}")
    again = publish(run, "me/closed", public=True)
    assert (again.private, again.created, again.changed) == (True, False, True)
    assert len(hub.commits_of("me/closed")) == 2


def test_pushing_the_same_again_commits_nothing(hub: Any, run: Path) -> None:
    first = publish(run, "me/yoda")
    second = publish(run, "me/yoda")
    assert not second.changed
    assert second.commit == first.commit
    assert len(hub.commits_of("me/yoda")) == 1


def test_other_files_of_the_repository_stay(hub: Any, run: Path) -> None:
    publish(run, "me/yoda")
    hub.repos["me/yoda"].commit("by hand", {"NOTES.md": ("regular", b"mine")})
    (run / "tokenizer_config.json").write_text("{}")
    publish(run, "me/yoda")
    assert hub.content("me/yoda", "NOTES.md") == b"mine"


def test_no_place_of_this_machine_goes(hub: Any, run: Path, tiny_model_folder: Path) -> None:
    publish(run, "me/yoda")
    for name in GOES - {"adapter_model.safetensors"}:
        text = hub.content("me/yoda", name).decode()
        assert str(run.parent) not in text, name
        assert str(tiny_model_folder.parent) not in text, name
    assert json.loads(hub.content("me/yoda", "adapter_config.json"))["base_model_name_or_path"] == "tiny-llama"
    settings = yaml.safe_load(hub.content("me/yoda", "run.yaml"))
    assert (settings["model_name_or_path"], settings["dataset_name"]) == ("tiny-llama", "rows.jsonl")
    assert "output_dir" not in settings
    assert str(tiny_model_folder) in (run / "run.yaml").read_text()  # the run itself is left as it is


def test_what_came_back_from_the_hub_is_a_run_that_answers_alike(
    hub: Any, run: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    import torch
    from huggingface_hub import snapshot_download
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunesmith.recipe import Recipe

    publish(run, "me/yoda")
    there = snapshot_download("me/yoda", cache_dir=tmp_path / "cache")
    answers = []
    for folder in (run, there):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), folder).eval()
        with torch.no_grad():
            answers.append(model(input_ids=torch.tensor([[5, 6, 7]])).logits)
    assert torch.equal(*answers)
    Recipe.of(Recipe.read(Path(there) / "run.yaml"))


def test_a_token_that_is_refused_and_none_at_all(hub: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_WRONGwrongWRONGwrong0123456789")
    with pytest.raises(HubError, match=r"does not accept your token \(from HF_TOKEN\)") as refused:
        publish(run, "me/yoda")
    assert "hf_WRONG" not in str(refused.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"not logged in.*tunesmith login"):
        publish(run, "me/yoda")
    assert not hub.repos


def test_a_token_that_may_only_read_is_said_before_anything_is_made(hub: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_READERreaderREADERreader0123456789")
    with pytest.raises(HubError, match=r"can only read .*write permission"):
        publish(run, "me/yoda")
    assert not hub.repos


def test_a_name_of_somebody_else(hub: Any, run: Path) -> None:
    with pytest.raises(HubError, match=r"may not write to you/yoda: you are me logged in, and you is not you") as refused:
        publish(run, "you/yoda")
    assert "name under me" in refused.value.fix


@pytest.mark.parametrize("name", ["yoda", "me/yo da", "me/yoda/1", "../yoda", "", "me/-x", "me/" + "x" * 200])
def test_what_is_no_name_is_refused_without_asking(hub: Any, run: Path, name: str) -> None:
    with pytest.raises(HubError, match="user/name"):
        publish(run, name)
    assert not hub.asked


def test_offline_is_said_at_once_and_a_dry_run_works(hub: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        publish(run, "me/yoda")
    assert {file.name for file in prepare(run, "me/yoda").files} == GOES
    assert not hub.asked


def test_no_network(hub: Any, run: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"\(http://127.0.0.1:9\) cannot be reached"):
        publish(run, "me/yoda")
    assert sum(waits) < 60


@pytest.mark.parametrize(
    ("part", "method"), [("/whoami-v2", "GET"), ("/repos/create", "POST"), ("/preupload/", "POST"), ("/commit/", "POST")]
)
def test_retry_after_is_honoured_wherever_it_is_asked_for(hub: Any, run: Path, waits: list[float], part: str, method: str) -> None:
    failing(hub, part, 1, answering(429, {"Retry-After": "37"}), method)
    assert publish(run, "me/yoda").changed
    assert max(waits) in (37, 38)
    assert len(hub.commits_of("me/yoda")) == 1


@pytest.mark.parametrize(("part", "method"), [("/whoami-v2", "GET"), ("/preupload/", "POST"), ("/commit/", "POST")])
def test_but_not_for_longer_than_anybody_would_wait(hub: Any, run: Path, waits: list[float], part: str, method: str) -> None:
    failing(hub, part, 99, answering(429, {"Retry-After": str(PATIENCE + 3300)}), method)
    with pytest.raises(HubError, match=r"asks to wait 3600 s.*In 60 minutes"):
        publish(run, "me/yoda")
    assert sum(waits) == 0


def test_a_hub_that_stays_ill_ends_it_after_a_few_tries(hub: Any, run: Path, waits: list[float]) -> None:
    failing(hub, "/commit/", 99, answering(503))
    with pytest.raises(HubError, match=r"fault of its own just now \(503\)") as ill:
        publish(run, "me/yoda")
    assert "Run the same command again" in ill.value.fix
    assert hub.count("POST", "/commit/") == 5
    assert hub.commits_of("me/yoda") == []
    hub.faults.clear()
    uploads = hub.count("PUT", "/storage/")
    assert publish(run, "me/yoda").changed
    assert hub.count("PUT", "/storage/") == uploads  # what was uploaded is kept
    assert len(hub.commits_of("me/yoda")) == 1


def test_an_upload_that_was_cut_goes_on(hub: Any, run: Path, waits: list[float]) -> None:
    def part_of_it(handler: Any) -> None:
        handler.rfile.read(1000)
        handler.cut()

    failing(hub, "/storage/", 2, part_of_it, "PUT")
    assert publish(run, "me/yoda").changed
    assert hub.count("PUT", "/storage/") >= 3
    assert len(hub.commits_of("me/yoda")) == 1
    assert hub.content("me/yoda", "adapter_model.safetensors") == (run / "adapter_model.safetensors").read_bytes()


def test_an_upload_that_is_cut_every_time_commits_nothing_and_the_next_push_completes_it(
    hub: Any, run: Path, waits: list[float]
) -> None:
    failing(hub, "/storage/", 99, lambda handler: handler.cut(), "PUT")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(HubError, match="cannot be reached"):
        publish(run, "me/yoda")
    assert hub.commits_of("me/yoda") == []
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    hub.faults.clear()
    assert publish(run, "me/yoda").changed
    assert len(hub.commits_of("me/yoda")) == 1


def test_a_commit_whose_answer_was_lost_is_made_once(hub: Any, run: Path, waits: list[float]) -> None:
    hub.lose_commits = 1
    told: list[str] = []
    pushed = publish(run, "me/yoda", told=told.append)
    assert pushed.changed
    assert len(hub.commits_of("me/yoda")) == 1
    assert pushed.commit == hub.repos["me/yoda"].head
    assert "The commit had arrived, though its answer was lost" in told


def test_a_commit_that_was_lost_itself_is_sent_again(hub: Any, run: Path, waits: list[float]) -> None:
    def lost(handler: Any) -> None:
        drain(handler)
        handler.cut()

    failing(hub, "/commit/", 2, lost)
    assert publish(run, "me/yoda").changed
    assert len(hub.commits_of("me/yoda")) == 1


def test_somebody_else_who_commits_meanwhile_is_not_overwritten(hub: Any, run: Path) -> None:
    publish(run, "me/yoda")
    (run / "tokenizer_config.json").write_text("{}")

    def meanwhile(handler: Any) -> bool:
        if "/preupload/" in handler.route:
            hub.repos["me/yoda"].commit("theirs", {"tokenizer_config.json": ("regular", b"theirs")})
            hub.faults.clear()
        return False

    hub.faults.append(meanwhile)
    with pytest.raises(HubError, match="Somebody else changed me/yoda in the meantime"):
        publish(run, "me/yoda")
    assert hub.content("me/yoda", "tokenizer_config.json") == b"theirs"


def test_it_is_not_called_pushed_when_the_hub_holds_something_else(hub: Any, run: Path) -> None:
    def loses_a_file(handler: Any) -> bool:
        if "/paths-info/" in handler.route:
            del hub.repos["me/yoda"].commits[-1][2]["adapter_config.json"]
            hub.faults.clear()
        return False

    hub.faults.append(loses_a_file)
    with pytest.raises(HubError, match=r"does not hold adapter_config.json as it is here"):
        publish(run, "me/yoda")


def test_what_must_not_be_published_stops_it_before_the_hub_is_asked(hub: Any, run: Path) -> None:
    (run / "chat_template.jinja").write_text("{# first #}\n{# key: AKIAABCDEFGHIJKLMNOP #}\n")
    with pytest.raises(RunError, match=r"chat_template.jinja, line 2: an AWS access key \(AKIAAB…\).*Nothing was pushed"):
        publish(run, "me/yoda")
    assert not hub.asked


def test_from_python_a_run_pushes_itself(hub: Any, run: Path) -> None:
    import tunesmith as ts

    assert ts.push(run, "me/one").changed
    assert ts.load(run).push("me/two", public=True).url.endswith("/me/two")
    assert [repo.private for repo in hub.repos.values()] == [True, False]


def test_a_server_that_echoes_the_token_does_not_bring_it_into_any_traceback(hub: Any, run: Path) -> None:
    import traceback

    failing(hub, "/preupload/", 1, answering(400, None, {"error": f"bad header: Bearer {os.environ['HF_TOKEN']}"}))
    with pytest.raises(TunesmithError) as refused:
        publish(run, "me/yoda")
    assert "CANARY" not in "".join(traceback.format_exception(refused.value))
