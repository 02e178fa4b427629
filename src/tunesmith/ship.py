"""The verbs after training: merge, export, push."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch

from tunesmith.api import Run, load
from tunesmith.base.catalog import gguf_file
from tunesmith.errors import ModelError, RunError
from tunesmith.events import Note, Progress, Watch
from tunesmith.export import gguf
from tunesmith.export.agreement import LIMITS, Agreement, compare, next_token_logs
from tunesmith.export.hub import Pushed
from tunesmith.export.merge import compute_type, open_merged, umask, write_merged
from tunesmith.export.ollama import write_modelfile
from tunesmith.export.publish import publish
from tunesmith.generate.session import Session, conversations
from tunesmith.open_run import open_session, recipe_of

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def merge(run: str | Path, out: str | Path, dtype: str = "bfloat16", watch: Watch = lambda event: None) -> tuple[Agreement, float]:
    """Write a run's base with its adapter merged in as a plain transformers model, and compare it with the live adapter.

    Args:
        out: the folder to make; it must not hold anything. dtype: of the weights: bfloat16, float16 or float32.

    Returns:
        How far the two agree, and the largest divergence that was allowed.

    Raises:
        RunError: ``out`` holds files already, or the merged model answers otherwise than the live adapter.
    """
    place, kind = Path(out), DTYPES[dtype]
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunError(f"{place} is not empty.", "Give another folder, or move it away.")
    watch(Note("Loading the run"))
    session = open_session(load(run).folder, lean=False)
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
    try:
        rows = conversations(session)
        live, limit = next_token_logs(session.model, rows), max(LIMITS[kind], LIMITS[compute_type(session.model)])
        write_merged(session.model, made, kind, session.stop_ids, lambda done, total: watch(Progress("tensors", done, total)))
        session.renderer.tokenizer.save_pretrained(made)
        watch(Note("Comparing it with the live adapter"))
        agreement = compare(live, next_token_logs(open_merged(made, session.model), rows))
        if not agreement.kl <= limit:
            raise RunError(
                f"The merged model diverges from the live adapter by {agreement.kl:.1e} nats a token, more than {limit:.0e} "
                f"({agreement.top1:.1%} of {agreement.tokens} positions have the same likeliest token); it was not kept.",
                "Try --dtype float32, or ship the adapter itself.",
            )
        made.chmod(0o777 & ~umask())
        if place.exists():
            place.rmdir()
        made.rename(place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return agreement, limit


def export_gguf(
    run: str | Path, out: str | Path, kind: str = "f16", watch: Watch = lambda event: None, *, ollama: bool = False
) -> int:
    """Write a GGUF file of a run; returns its size in bytes.

    Args:
        kind: f16, q8_0 or f32: the merged model; adapter: the adapter alone; base: the base alone, as training saw it.
        ollama: write a Modelfile beside it.

    Raises:
        RunError: the file is there already. ModelError: the base did not come as GGUF, so there is no metadata to take over.
        AdapterError: the family or the adapter's kind has no place in such a file.
    """
    place, folder = Path(out), load(run).folder
    for path in (place, *([place.with_name("Modelfile")] if ollama else [])):
        if path.exists():
            raise RunError(f"{path} is there already.", "Give another name, or move it away.")
    source = None if kind == "adapter" else _base_file(folder)
    watch(Note("Loading the run"))
    session = open_session(folder, lean=False)
    place.parent.mkdir(parents=True, exist_ok=True)
    made = place.with_name(f".{place.name}.part")
    try:
        if source is None:
            gguf.write_adapter(session.model, made)
        else:
            settings = {"tokenizer.chat_template": session.renderer.tokenizer.chat_template}
            settings["tokenizer.ggml.eos_token_id"] = session.renderer.stop_token_id
            told = lambda done, total: watch(Progress("tensors", done, total))  # noqa: E731
            gguf.write_model(session.model, source, made, "f16" if kind == "base" else kind, settings, told, kind != "base")
        made.rename(place)
    finally:
        made.unlink(missing_ok=True)
    if ollama:
        _write_modelfile(session, place)
    return place.stat().st_size


def push(
    run: str | Path | Run, repo: str, *, public: bool = False, base: str | None = None, facts_of: str | Path | None = None,
    watch: Watch = lambda event: None,
) -> Pushed:  # fmt: skip
    """Put a run, a merged model or a GGUF file on the hub; see `publish`. Returns where it is."""
    place = run.folder if isinstance(run, Run) else Path(run)
    facts = None if facts_of is None else Path(facts_of)
    return publish(place, repo, public=public, base=base, facts_of=facts, told=lambda line: watch(Note(line)))


def _base_file(folder: Path) -> Path:
    """The GGUF file a run's base came from. Raises ModelError."""
    name = recipe_of(folder).model_name_or_path
    if source := gguf_file(name):
        return source
    raise ModelError(
        f"{name} did not come as a GGUF file, so there is no tokenizer in GGUF's form to take over.",
        f"Run `tunesmith merge {folder} FOLDER` and llama.cpp's convert_hf_to_gguf.py on it; or --type adapter.",
    )


def _write_modelfile(session: Session, place: Path) -> None:
    tokenizer = session.renderer.tokenizer
    stops = [tokenizer.convert_ids_to_tokens(token) for token in session.stop_ids]
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    write_modelfile(place.with_name("Modelfile"), place.name, render, tokenizer.bos_token or "", stops)
