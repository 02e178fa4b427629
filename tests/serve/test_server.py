"""The command as a process: it says where it is, ends as asked, and refuses what is not safe; the commands for other servers."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests.serve.conftest import CHAT, Process, question

from tunesmith.cli.main import main
from tunesmith.errors import RunError
from tunesmith.serve.elsewhere import commands, model_names
from tunesmith.serve.server import check_host, claim_port, read_key

KEY = "canary-4f1d0a9e7b6c"


def test_the_process_answers_lets_living_answers_end_and_stops_as_asked(adapter_folder: Path) -> None:
    with Process(adapter_folder, TUNESMITH_API_KEY=KEY) as served, served.client(KEY) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny-yoda"
        assert client.get("/v1/models", headers={"Authorization": ""}).status_code == 401
        body = question(model="tiny-yoda", stream=True)
        with client.stream("POST", CHAT, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        said = served.stop()
    assert served.process.returncode == 0
    assert "Traceback" not in said
    assert KEY not in said


@pytest.fixture
def talkative(adapter_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The same over a base that never comes to its stop token."""
    base, folder = shutil.copytree(tiny_model_folder, tmp_path / "base"), shutil.copytree(adapter_folder, tmp_path / "talkative")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"][2] = 0
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base)}))
    return folder


class Crowd:
    """Fifty clients that ask at once. ends: the last line each got."""

    def __init__(self, served: Process) -> None:
        self.served, self._begun = served, threading.Semaphore(0)
        self._pool = concurrent.futures.ThreadPoolExecutor(50)
        self._answers = [self._pool.submit(self._come) for _ in range(50)]
        assert all(self._begun.acquire(timeout=60) for _ in range(50))

    def _come(self) -> str:
        body = question(model="talkative", stream=True, max_tokens=200)
        with self.served.client() as client, client.stream("POST", CHAT, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            self._begun.release()
            try:
                return [line for line in lines if line][-1]
            except httpx.TransportError:
                return "cut off"

    @property
    def ends(self) -> list[str]:
        self._pool.shutdown()
        return [answer.result() for answer in self._answers]


def until_it_takes_no_more(served: Process) -> None:
    with contextlib.suppress(httpx.TransportError), served.client() as client:
        while client.get("/health", headers={"Connection": "close"}):  # one that is kept may be answered until the end
            pass


def test_stopped_under_load_it_ends_with_every_client_answered_or_told(talkative: Path) -> None:
    """There is a place for one: some get their answer in the time that living answers have, and not all."""
    with Process(talkative, "--slots", "1") as served:
        crowd = Crowd(served)
        said, ends = served.stop(), crowd.ends
    assert served.process.returncode == 0
    assert said.endswith("Stopped.\n")
    assert "Traceback" not in said
    assert "data: [DONE]" in ends
    assert {json.loads(end.removeprefix("data: "))["error"]["message"] for end in ends if end != "data: [DONE]"} == {
        "This server is being stopped."
    }


def test_a_second_ctrl_c_ends_it_at_once_and_quietly(talkative: Path) -> None:
    with Process(talkative, "--slots", "1") as served:
        crowd = Crowd(served)
        served.process.send_signal(signal.SIGINT)
        until_it_takes_no_more(served)  # the first was heard
        served.process.send_signal(signal.SIGINT)
        said, _ = served.process.communicate(timeout=60)
        ends = crowd.ends
    assert served.process.returncode in (130, -signal.SIGINT)  # where it comes while Python ends; a shell says 130 of both
    assert "Traceback" not in served.said + said
    assert "cut off" in ends


def test_ctrl_c_is_130(adapter_folder: Path, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def press() -> None:
        with contextlib.closing(_connected(port)) as connection:  # it listens from the start, and answers once it serves
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        os.kill(os.getpid(), signal.SIGINT)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        pressed = pool.submit(press)
        assert main(["serve", str(adapter_folder), "--port", str(port)]) == 130
        pressed.result()
    said = capsys.readouterr()
    assert "tiny-yoda (tuned), tiny-llama (its base)" in said.out
    assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in said.out
    assert "Stopped." in said.err


def _connected(port: int) -> socket.socket:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))


def test_a_taken_port_is_an_error_that_names_who_has_it(adapter_folder: Path, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(adapter_folder), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"Port {port} is taken by " in said
    assert f"process {os.getpid()}" in said


def test_beyond_this_machine_it_wants_a_key(adapter_folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("TUNESMITH_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "example.com"):
        assert main(["serve", str(adapter_folder), "--host", host]) == 2
        assert "TUNESMITH_API_KEY" in capsys.readouterr().err
    assert check_host("0.0.0.0", KEY)
    assert not check_host("127.0.0.1", None)
    with pytest.raises(RunError, match="is no address"):
        claim_port("no such host", 0)
    with pytest.raises(RunError, match="cannot be listened on"):
        claim_port("192.0.2.1", 0)  # an address for documentation, nobody's


def test_a_key_comes_from_the_environment_or_a_private_file(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("TUNESMITH_API_KEY", "another-canary-7c1e")
    assert read_key(None) == "another-canary-7c1e"
    assert read_key(str(file)) == KEY
    file.chmod(0o644)
    with pytest.raises(RunError, match="chmod 600"):
        read_key(str(file))
    for bad in ("", "short", "with spaces in it, this one", "k\u00e9y" * 10):
        monkeypatch.setenv("TUNESMITH_API_KEY", bad)
        with pytest.raises(RunError, match="does not hold an API key") as caught:
            read_key(None)
        assert not bad or bad not in str(caught.value)
    with pytest.raises(RunError, match="cannot be read"):
        read_key(str(tmp_path / "none"))


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "fastapi"])
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, missing: str) -> None:
    """In a process of its own, where the package cannot be imported whoever asks first."""
    hidden = (
        "import sys, importlib.abc\n"
        "class Hidden(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        f"util.find_spec = lambda name, *more: None if name == {missing!r} else found(name, *more)\n"
        "from tunesmith.cli.main import main\n"
        "sys.exit(main(['serve', 'runs/any']))\n"
    )
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert f"needs {missing}, which is not installed" in " ".join(done.stderr.split())
    assert "pip install fastapi starlette uvicorn" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


# ---- the commands for other servers


@pytest.fixture
def run(adapter_folder: Path, tmp_path: Path) -> Any:
    """A run's folder over a base of the hub, with these settings and these fields of the adapter's config."""

    def made(base: str = "org/model@v2", settings: Any = (), **config: Any) -> Path:
        folder = tmp_path / "my run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(adapter_folder, folder)
        (folder / "run.yaml").write_text(yaml.safe_dump({"model_name_or_path": base, "dataset_name": "yoda", **dict(settings)}))
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return made


def test_vllm_gets_the_base_as_it_was_trained_with_and_the_adapter(run: Any) -> None:
    folder = run(r=12)
    note, command = commands(folder, "vllm", 8001)
    assert note.startswith("# ")
    assert command.startswith("vllm serve org/model --revision v2 --enable-lora --max-lora-rank 16 ")
    assert f"--lora-modules 'my run={folder}'" in command
    assert f"--chat-template '{folder}/chat_template.jinja'" in command
    assert "--generation-config" not in command, "peft wrote this folder, without such a file"
    assert "--quantization bitsandbytes" in command
    assert command.endswith("--port 8001")
    assert "bitsandbytes" not in commands(run(settings={"load_in_4bit": False}), "vllm")[0]


def test_vllm_is_told_where_answers_end(run: Any) -> None:
    folder = run()
    (folder / "generation_config.json").write_text('{"eos_token_id": [2]}')
    assert f"--generation-config '{folder}'" in commands(folder, "vllm")[1]


@pytest.mark.parametrize("config", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"r": 1024}])
def test_what_vllm_cannot_put_on_a_base_is_merged_first(run: Any, config: Any) -> None:
    why, merge, serve = commands(run(**config), "vllm")
    assert why.startswith("# ")
    assert merge.startswith("tunesmith merge ")
    assert serve.startswith("vllm serve 'my run-merged' --served-model-name 'my run'")


@pytest.mark.parametrize("family", ["a GGUF file", "a folder"])
def test_a_base_that_export_can_write_is_exported_for_llama_cpp_and_ollama(run: Any, tiny_model_folder: Path, family: str) -> None:
    folder = run("smollm2-135m" if family == "a GGUF file" else str(tiny_model_folder))
    assert commands(folder, "llama.cpp")[0] == f"tunesmith export '{folder}' 'my run.gguf'"
    assert commands(folder, "llama.cpp")[1].startswith("llama-server -m 'my run.gguf' ")
    assert commands(folder, "ollama")[0].endswith("--ollama")


def test_a_base_of_another_family_is_merged_and_converted(run: Any, tmp_path: Path) -> None:
    base = tmp_path / "gemma"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "gemma2"}')
    folder = run(str(base), base_model_name_or_path=str(base))
    assert any("convert_hf_to_gguf.py" in line for line in commands(folder, "llama.cpp"))
    subprocess.run(commands(folder, "ollama")[3], shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "Modelfile").read_text() == "FROM ./my run.gguf\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\n"


def test_a_base_that_came_as_gguf_is_merged_for_vllm(run: Any) -> None:
    assert "merge" in commands(run("smollm2-135m"), "vllm")[1]


def test_names_of_models_tell_no_paths(run: Any, tiny_model_folder: Path) -> None:
    assert model_names(run()) == ("my run", "org/model@v2")
    assert model_names(run(str(tiny_model_folder))) == ("my run", "tiny-llama")


def test_the_commands_are_printed_and_nothing_is_loaded(run: Any, capsys: Any) -> None:
    for server in ("vllm", "llama.cpp", "ollama"):
        assert main(["serve", str(run()), "--print", server]) == 0
        assert "my run" in capsys.readouterr().out
    assert main(["serve", "/nowhere", "--print", "vllm"]) == 2
