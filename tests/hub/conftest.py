"""A hub on this machine: as much of the Hugging Face hub's HTTP as its own client needs to create, upload, commit and read back.

It keeps everything in memory, counts what it is asked, and has faults on request: a list of functions that are asked before every
request and may answer it or cut the connection instead.
"""

import base64
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest
import yaml

TOKEN = "hf_CANARYcanaryCANARYcanary0123456789"
READER = "hf_READERreaderREADERreader0123456789"


class Repo:
    """Commits, oldest first: id, message, and path to ("regular", bytes) or ("lfs", sha256)."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: list[tuple[str, str, dict[str, tuple[str, Any]]]] = []
        self.commit("initial commit", {".gitattributes": ("regular", b"*.safetensors filter=lfs\n")})

    def commit(self, message: str, files: dict[str, tuple[str, Any]]) -> str:
        tree = {**(self.commits[-1][2] if self.commits else {}), **files}
        oid = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits.append((oid, message, tree))
        return oid

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    def tree(self, revision: str) -> dict[str, tuple[str, Any]]:
        return next((tree for oid, _, tree in self.commits if oid == revision), self.commits[-1][2])


class StandIn:
    """The hub's state. faults: asked before every request with its method and path; True ends the request there."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.faults: list[Callable[[Any], bool]] = []
        self.lose_commits = 0
        self.lock = threading.Lock()
        self.url = ""

    def commits_of(self, repo: str) -> list[str]:
        return [message for _, message, _ in self.repos[repo].commits[1:]]

    def content(self, repo: str, path: str, revision: str = "main") -> bytes:
        kind, value = self.repos[repo].tree(revision)[path]
        return self.objects[value] if kind == "lfs" else value

    def count(self, method: str, part: str) -> int:
        return sum(m == method and part in p for m, p in self.asked)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def _serve(self) -> None:
        self.route = unquote(urlparse(self.path).path)
        with self.hub.lock:
            self.hub.asked.append((self.command, self.route))
        if any(fault(self) for fault in list(self.hub.faults)):
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if "chunked" not in str(
            self.headers.get("Transfer-Encoding")) else self._chunks()  # fmt: skip
        if self.route.startswith("/storage/"):
            return self._store()
        if not self._user():
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        with self.hub.lock:
            self._api()

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _user(self) -> str | None:
        return {f"Bearer {TOKEN}": "write", f"Bearer {READER}": "read"}.get(self.headers.get("Authorization", ""))

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self) -> bool:
        """End the connection without an answer."""
        self.close_connection = True
        self.connection.close()
        return True

    def _store(self) -> None:
        oid = self.route.rsplit("/", 1)[-1]
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400, {"error": "not the object it was said to be"})
        self.hub.objects[oid] = self.body
        self.answer(200)

    def _api(self) -> None:
        parts = self.route.strip("/").split("/")
        if self.route == "/api/whoami-v2":
            role = self._user()
            return self.answer(200, {"name": "me", "orgs": [], "auth": {"accessToken": {"role": role, "displayName": "t"}}})
        if self.route == "/api/validate-yaml":
            return self._validate_yaml()
        if self.route == "/api/repos/create":
            return self._create()
        repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2]).removesuffix(".git")
        if repo not in self.hub.repos:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if self.route.endswith("/info/lfs/objects/batch"):
            return self._batch()
        if parts[0] != "api":
            return self._resolve(self.hub.repos[repo], parts[3], "/".join(parts[4:]))
        verb = parts[4] if len(parts) > 4 else "info"
        getattr(self, f"_{verb.replace('-', '_')}")(self.hub.repos[repo], parts[5:])

    def _validate_yaml(self) -> None:
        try:
            yaml.safe_load(json.loads(self.body)["content"].split("\n---\n")[0].removeprefix("---\n"))
            self.answer(200, {"warnings": [], "errors": []})
        except yaml.YAMLError as error:
            self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not repo.startswith("me/"):
            return self.answer(403, {"error": f"You don't have the rights to create a model under {asked['organization']}"})
        if repo in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
        self.hub.repos[repo] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(200, {"url": f"{self.hub.url}/{repo}"})

    def _info(self, repo: Repo, rest: list[str]) -> None:
        name = next(name for name, one in self.hub.repos.items() if one is repo)
        files = [{"rfilename": path} for path in repo.tree(rest[0] if rest else "main")]
        self.answer(200, {"id": name, "modelId": name, "sha": repo.head, "private": repo.private, "tags": [], "siblings": files})

    _revision = _info

    def _preupload(self, repo: Repo, rest: list[str]) -> None:
        answers = []
        for file in json.loads(self.body)["files"]:
            kind = "lfs" if file["path"].endswith((".safetensors", ".gguf")) or file["size"] > 1_000_000 else "regular"
            there = repo.tree("main").get(file["path"])
            oid = None if there is None else there[1] if there[0] == "lfs" else _git_hash(there[1])
            answers.append({"path": file["path"], "uploadMode": kind, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": answers})

    def _batch(self) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            there = one["oid"] in self.hub.objects
            upload = {} if there else {"actions": {"upload": {"href": f"{self.hub.url}/storage/{one['oid']}", "header": {}}}}
            objects.append({**one, **upload})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, rest: list[str]) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if self._user() != "write":
            return self.answer(403, {"error": "Your token has no write permission"})
        if header.get("parentCommit") not in (None, repo.head):
            return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files: dict[str, tuple[str, Any]] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = ("regular", base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.hub.objects, "committed before it was uploaded"
                files[value["path"]] = ("lfs", value["oid"])
        oid = repo.commit(header["summary"], files)
        if self.hub.lose_commits:
            self.hub.lose_commits -= 1
            self.cut()
            return
        name = next(name for name, one in self.hub.repos.items() if one is repo)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _paths_info(self, repo: Repo, rest: list[str]) -> None:
        asked = json.loads(self.body) if self.body[:1] == b"{" else parse_qs(self.body.decode())
        tree = repo.tree(rest[0])
        self.answer(200, [self._entry(path, tree[path]) for path in asked["paths"] if path in tree])

    def _tree(self, repo: Repo, rest: list[str]) -> None:
        self.answer(200, [self._entry(path, file) for path, file in repo.tree(rest[0]).items()])

    def _entry(self, path: str, file: tuple[str, Any]) -> dict[str, Any]:
        kind, value = file
        if kind == "regular":
            return {"type": "file", "path": path, "size": len(value), "oid": _git_hash(value)}
        size = len(self.hub.objects[value])
        lfs = {"oid": value, "size": size, "pointerSize": 130}
        return {"type": "file", "path": path, "size": size, "oid": "0" * 40, "lfs": lfs}

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        if path not in repo.tree(revision):
            return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        kind, value = repo.tree(revision)[path]
        content = self.hub.objects[value] if kind == "lfs" else value
        etag = value if kind == "lfs" else _git_hash(value)
        self.answer(200, content, {"X-Repo-Commit": repo.head, "ETag": f'"{etag}"', "X-Linked-Size": str(len(content))})


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, running; the real client in this process talks to it, with a token that may write."""
    from huggingface_hub import constants, utils

    hub = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    utils.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds this process would have slept, instead of sleeping."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append(seconds))
    return waited


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """An adapter over the tiny model, as peft saves it, with its tokenizer. Read it only."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(tiny_model_folder / name, folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, adapter: Path, tiny_model_folder: Path) -> Path:
    """A run's folder over the tiny model, as training leaves it, with much beside it that nobody should publish."""
    from tunesmith.export.manifest import write_manifest
    from tunesmith.recipe import Recipe

    folder = tmp_path / "runs" / "yoda-1"
    shutil.copytree(adapter, folder)
    rows = tmp_path / "private" / "rows.jsonl"
    settings = {"model_name_or_path": str(tiny_model_folder), "dataset_name": str(rows), "output_dir": str(folder)}
    Recipe.of(settings).write(folder / "run.yaml")
    steps = [{"step": n, "loss": 3.0 / n, "eval_loss": 1.5 if n == 20 else None} for n in range(1, 21)]
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    facts = {"Data": {"rows": "720 trained on, 80 held out"}, "On rows it never saw": {"held-out loss": "1.50, of the base 3.10"}}
    origin = {"base": str(tiny_model_folder), "revision": None, "data_sha256": "ab" * 32, "versions": {"torch": "2.13.0"}}
    write_manifest(folder, {**origin, "facts": facts, "updates": {"done": 20, "of": 20}})
    folder.joinpath(".env").write_text("HF_TOKEN=hf_" + "a" * 34)
    folder.joinpath("training_args.bin").write_bytes(b"\x80\x04")
    folder.joinpath("rows.jsonl").write_text('{"text": "my own row"}\n')
    folder.joinpath("report.html").write_text("my own row")
    folder.joinpath("checkpoints").mkdir()
    folder.joinpath("checkpoints", "adapter.safetensors").write_bytes(b"x")
    return folder
