"""The command as a process: it says where it is, ends as asked, and refuses what is not safe; the commands for other servers."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.serve.conftest import CHAT, question

from tunesmith.cli.main import main
from tunesmith.errors import MachineError, RunError
from tunesmith.serve.elsewhere import commands, model_names
from tunesmith.serve.server import check_extra, check_host, claim_port, read_key

KEY = "canary-4f1d0a9e7b6c"


class Process:
    """`tunesmith serve` on a free port."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tunesmith.cli.main", "serve", str(folder), "--port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip
        self.said = ""
        assert self.process.stdout is not None
        while "Ctrl-C" not in self.said:
            line = self.process.stdout.readline()
            assert line, self.said
            self.said += line
        self.port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/v1", self.said)[0])


def test_the_process_answers_lets_living_answers_end_and_stops_as_asked(adapter_folder: Path) -> None:
    served = Process(adapter_folder, TUNESMITH_API_KEY=KEY)
    url, headers = f"http://127.0.0.1:{served.port}", {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False, verify=False) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny-yoda"
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401
        body = question(model="tiny-yoda", stream=True)
        with client.stream("POST", CHAT, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
    rest, _ = served.process.communicate(timeout=60)
    assert served.process.returncode == 0
    assert "Traceback" not in served.said + rest
    assert KEY not in served.said + rest


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


def test_without_the_extra_it_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(MachineError, match=r"needs uvicorn, which is not.*pip install 'tunesmith\[serve\]'"):
        check_extra()


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
    assert "--quantization bitsandbytes" in command
    assert command.endswith("--port 8001")
    assert "bitsandbytes" not in commands(run(settings={"load_in_4bit": False}), "vllm")[0]


@pytest.mark.parametrize("config", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"r": 1024}])
def test_what_vllm_cannot_put_on_a_base_is_merged_first(run: Any, config: Any) -> None:
    why, merge, serve = commands(run(**config), "vllm")
    assert why.startswith("# ")
    assert merge.startswith("tunesmith merge ")
    assert serve.startswith("vllm serve 'my run-merged' --served-model-name 'my run'")


def test_a_base_that_came_as_gguf_is_exported_for_llama_cpp_and_ollama_and_merged_for_vllm(run: Any) -> None:
    folder = run("smollm2-135m")
    assert commands(folder, "llama.cpp")[0] == f"tunesmith export '{folder}' 'my run.gguf'"
    assert commands(folder, "llama.cpp")[1].startswith("llama-server -m 'my run.gguf' ")
    assert commands(folder, "ollama")[0].endswith("--ollama")
    assert "merge" in commands(folder, "vllm")[1]
    assert any("convert_hf_to_gguf.py" in line for line in commands(run(), "llama.cpp"))


def test_names_of_models_tell_no_paths(run: Any, tiny_model_folder: Path) -> None:
    assert model_names(run()) == ("my run", "org/model@v2")
    assert model_names(run(str(tiny_model_folder))) == ("my run", "tiny-llama")


def test_the_commands_are_printed_and_nothing_is_loaded(run: Any, capsys: Any) -> None:
    for server in ("vllm", "llama.cpp", "ollama"):
        assert main(["serve", str(run()), "--print", server]) == 0
        assert "my run" in capsys.readouterr().out
    assert main(["serve", "/nowhere", "--print", "vllm"]) == 2
