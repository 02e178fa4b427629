"""A tiny tuned model behind a real server on a free port of this machine, in a thread; or without a server, as an ASGI app."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tunesmith.serve.limits import Limits
from tunesmith.serve.service import Service

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="session")
def tuned_model(tiny_model_folder: Path) -> Any:
    """The tiny model with an adapter of random numbers, so that it answers otherwise than its base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(base, config).eval()


@pytest.fixture(scope="session")
def adapter_folder(tuned_model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder that peft saved."""
    folder = tmp_path_factory.mktemp("adapters") / "tiny-yoda"
    tuned_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def session(tuned_model: Any, tiny_tokenizer: Any) -> Any:
    from tunesmith.data.render import Renderer
    from tunesmith.generate.session import Session

    return Session(tuned_model, Renderer(tiny_tokenizer))


@pytest.fixture
def client(live: Any) -> Any:
    """OpenAI's own, of the server that a file calls ``live``."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def endless(session: Any) -> Any:
    """A session whose answers never stop of themselves."""
    session.stop_ids = []
    return session


@dataclass(frozen=True)
class Live:
    """A server that runs. address: where. service: what answers."""

    address: tuple[str, int]
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=False, **options)

    def chat(self, client: httpx.Client, text: str = "The wind", **fields: Any) -> httpx.Response:
        return client.post(CHAT, json=question(text, **fields))


def question(text: str = "The wind", **fields: Any) -> dict[str, Any]:
    return {"model": "tuned", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


@pytest.fixture
def serve() -> Callable[..., Any]:
    """Serves a session within a ``with`` block."""
    import uvicorn

    from tunesmith.serve.app import make_app

    @contextmanager
    def serving(session: Any, limits: Limits = Limits(), key: str | None = None) -> Iterator[Live]:
        service = Service(session, "tuned", "base", limits)
        with socket.create_server(("127.0.0.1", 0)) as claimed:
            config = uvicorn.Config(
                make_app(service, key), log_config=None, access_log=False, ws="none", http="h11", timeout_graceful_shutdown=1
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([claimed],))
            thread.start()
            try:
                yield Live(claimed.getsockname(), service)
            finally:
                server.should_exit = True
                thread.join()

    return serving


class Process:
    """``with Process(folder) as served:`` `tunesmith serve` on a free port. said: what it printed until it served."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tunesmith.cli.main", "serve", str(folder), "--port", "0", *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip
        self.said = ""
        assert self.process.stdout is not None
        while "Ctrl-C" not in self.said:
            line = self.process.stdout.readline()
            assert line, self.said
            self.said += line
        self.url = re.findall(r"(http://127\.0\.0\.1:\d+)/v1", self.said)[0]

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()  # where a test failed it would go on for ever
        self.process.communicate()

    def client(self, key: str = "any") -> httpx.Client:
        """A client that sends this key."""
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=False)

    def stop(self) -> str:
        """End it by SIGTERM; all that it printed."""
        self.process.terminate()
        rest, _ = self.process.communicate(timeout=60)
        return self.said + rest
