"""The verbs after training: merge, export, push."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from tunesmith.api import Run, load
from tunesmith.base.catalog import gguf_file
from tunesmith.base.disk import plain_disk_errors
from tunesmith.errors import MachineError, RunError
from tunesmith.events import Note, Progress, Watch
from tunesmith.export import gguf
from tunesmith.export.agreement import LIMITS, Agreement, compare, next_token_logs
from tunesmith.export.hub import Pushed
from tunesmith.export.merge import compute_type, open_merged, write_merged
from tunesmith.export.ollama import context_length, modelfile
from tunesmith.export.publish import publish
from tunesmith.generate.session import Session, conversations
from tunesmith.open_run import open_session, recipe_of
from tunesmith.places import check_gguf_name
from tunesmith.training.workshop import check_free, made_whole, workshop

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def merge(run: str | Path, out: str | Path, dtype: str = "bfloat16", watch: Watch = lambda event: None) -> tuple[Agreement, float]:
    """Write a run's base with its adapter merged in as a plain transformers model, and compare it with the live adapter.

    Args:
        out: the folder to make; it must not hold anything. dtype: of the weights: bfloat16, float16 or float32.

    Returns:
        How far the two agree, and the largest divergence that was allowed.

    Raises:
        RunError: ``out`` holds files already or cannot be written, or the merged model answers otherwise than the live adapter.
    """
    place, folder, kind = Path(out), load(run).folder, DTYPES[dtype]
    with plain_disk_errors(place), made_whole(place, folder=True) as made:
        watch(Note("Loading the run"))
        session = open_session(folder, lean=False)
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
    return agreement, limit


def export_gguf(
    run: str | Path, out: str | Path, kind: str = "f16", watch: Watch = lambda event: None, *, ollama: bool = False
) -> int:
    """Write a GGUF file of a run; returns its size in bytes.

    Args:
        out: the file to make, with a name that ends in .gguf. ollama: write a Modelfile beside it.
        kind: f16, q8_0 or f32: the merged model; adapter: the adapter alone; base: the base alone, as training saw it.

    Raises:
        RunError: the file is named otherwise; it, or another Modelfile, is there already or cannot be written.
        ModelError: llama.cpp has no word for something in a base that did not come as GGUF.
        AdapterError: the family or the adapter's kind has no place in such a file.
    """
    check_gguf_name(out)
    place, folder = Path(out), load(run).folder
    with plain_disk_errors(place), made_whole(place) as made:
        watch(Note("Loading the run"))
        session = open_session(folder, lean=False)
        with _modelfile_beside(place, session, recipe_of(folder).max_length) if ollama else nullcontext():
            _write_gguf(session, gguf_file(recipe_of(folder).model_name_or_path), made, kind, watch)
    return place.stat().st_size


def _write_gguf(session: Session, source: Path | None, made: Path, kind: str, watch: Watch) -> None:
    """See `export_gguf`. source: the GGUF file that the base came as, if it did. Raises MachineError where the disk ends."""
    told = lambda done, total: watch(Progress("tensors", done, total))  # noqa: E731
    stored = "f16" if kind == "base" else kind
    try:
        if kind == "adapter":
            gguf.write_adapter(session.model, made)
        else:
            tokenizer = session.renderer.tokenizer
            gguf.write_model(session.model, tokenizer, session.stop_ids, source, made, stored, told, kind != "base")
    except OSError as error:
        if error.errno is not None:
            raise
        what = f"{made} could not be written: {error}."  # numpy's, which does not say why
        raise MachineError(what, "Free some space, or write to another disk.") from error


def push(
    run: str | Path | Run, repo: str, *, public: bool = False, base: str | None = None, facts_of: str | Path | None = None,
    watch: Watch = lambda event: None,
) -> Pushed:  # fmt: skip
    """Put a run, a merged model or a GGUF file on the hub; see `publish`. Returns where it is."""
    place = run.folder if isinstance(run, Run) else Path(run)
    facts = None if facts_of is None else Path(facts_of)
    return publish(place, repo, public=public, base=base, facts_of=facts, told=lambda line: watch(Note(line)))


@contextmanager
def _modelfile_beside(place: Path, session: Session, longest_row: int | None) -> Iterator[None]:
    """Puts a Modelfile beside the file that is made within this block, and before it: killed in between, the same export goes on
    with the Modelfile it finds, where a finished file without one would be in its way.

    Raises:
        RunError: another Modelfile stands there, or is being made by another export.
    """
    tokenizer, there = session.renderer.tokenizer, place.with_name("Modelfile")
    stops = [tokenizer.convert_ids_to_tokens(token) for token in session.stop_ids]
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    context = context_length(longest_row, session.context)
    content = modelfile(place.name, render, tokenizer.bos_token or "", stops, context).encode()
    if there.is_file() and there.read_bytes() == content:
        with workshop(there):
            yield
        return
    if there.exists():
        raise RunError(f"{there} is there already, and another than this export's.", "Export into another folder, or move it away.")
    with made_whole(there) as made:
        made.write_bytes(content)
        yield
        check_free(place)  # what came there meanwhile gets no Modelfile of ours
