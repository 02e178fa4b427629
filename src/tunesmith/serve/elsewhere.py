"""The commands that serve the same run with other servers, for more users than this one is for."""

import shlex
from pathlib import Path

from tunesmith.api import load
from tunesmith.base.catalog import gguf_file
from tunesmith.export.hub_card import shipped_of
from tunesmith.export.ollama import modelfile_command
from tunesmith.export.runtimes import VLLM_RANKS, listed, not_for_vllm, rank_of, read_config, vllm_told
from tunesmith.open_run import recipe_of

SERVERS = ("vllm", "llama.cpp", "ollama")


def model_names(folder: Path) -> tuple[str, str]:
    """The names a run and its base are asked by; paths of this machine are no part of them."""
    base = recipe_of(folder).model_name_or_path
    local = Path(base).expanduser().exists() or base.endswith(".gguf")
    return folder.resolve().name, Path(base).name if local else base


def commands(run: str | Path, server: str, port: int = 8000) -> list[str]:
    """Lines for a shell, comments among them.

    Raises:
        RunError: there is no adapter there. AdapterError: its config cannot be read.
    """
    folder = load(run).folder
    name = model_names(folder)[0]
    makers = {"vllm": _vllm, "llama.cpp": _llama_cpp, "ollama": _ollama}
    return makers[server](folder, name, port)


def _vllm(folder: Path, name: str, port: int) -> list[str]:
    config = read_config(folder)
    base = recipe_of(folder).model_name_or_path
    why = listed(not_for_vllm(config, gguf_file(base) is not None))
    listening = ["--host", "127.0.0.1", "--port", str(port)]
    if why:
        merged = f"{name}-merged"
        return [
            f"# vLLM cannot put this adapter on its base ({why}): merged into one model",
            shlex.join(["tunesmith", "merge", str(folder), merged]),
            shlex.join(["vllm", "serve", merged, "--served-model-name", name, *listening]),
        ]
    model, _, revision = (base, "", "") if Path(base).expanduser().exists() else base.partition("@")
    rank = next(rank for rank in VLLM_RANKS if rank >= rank_of(config))
    files = {path.name for path in folder.iterdir()}
    options = [
        *(["--revision", revision] if revision else []),
        "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={folder.resolve()}",
        *vllm_told(files, folder.resolve()),
        *(["--quantization", "bitsandbytes"] if _is_4bit(folder) else []),
        *listening,
    ]  # fmt: skip
    lines = [shlex.join(["vllm", "serve", model, *options])]
    if _is_4bit(folder):
        lines.insert(0, "# --quantization bitsandbytes: the base in 4 bits, as it was trained with")
    return lines


def _llama_cpp(folder: Path, name: str, port: int) -> list[str]:
    file = f"{name}.gguf"
    serving = ["llama-server", "-m", file, "--alias", name, "--jinja", "--host", "127.0.0.1", "--port", str(port)]
    return [*_exported(folder, file, ollama=False), shlex.join(serving)]


def _ollama(folder: Path, name: str, port: int) -> list[str]:
    file = f"{name}.gguf"
    made = [shlex.join(["ollama", "create", name, "-f", "Modelfile"]), shlex.join(["ollama", "run", name])]
    return [*_exported(folder, file, ollama=True), *made]


def _exported(folder: Path, file: str, ollama: bool) -> list[str]:
    if shipped_of(folder, str(folder)).whole:
        return [shlex.join(["tunesmith", "export", str(folder), file, *(["--ollama"] if ollama else [])])]
    merged = file.removesuffix(".gguf") + "-merged"
    lines = [
        "# `tunesmith export` cannot write a base of this family: merged, then converted by llama.cpp's own script",
        shlex.join(["tunesmith", "merge", str(folder), merged]),
        shlex.join(["python", "llama.cpp/convert_hf_to_gguf.py", merged, "--outfile", file]),
    ]
    return [*lines, modelfile_command(file)] if ollama else lines


def _is_4bit(folder: Path) -> bool:
    return (folder / "run.yaml").is_file() and bool(recipe_of(folder).load_in_4bit)
