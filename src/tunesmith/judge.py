"""Rows to judge a run by: those it held out, read again and proven to be the same, or others; and both models' losses on them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.base.catalog import cache_dir, resolve
from tunesmith.base.context import context_of, positions_in
from tunesmith.data.advice import ColumnsError
from tunesmith.data.bad_rows import BadRows
from tunesmith.data.cache import Cache
from tunesmith.data.columns import Columns, find_columns
from tunesmith.data.conversation import Conversation
from tunesmith.data.dataset import asides_of, fingerprint, prepare
from tunesmith.data.example import Example
from tunesmith.data.formats import to_conversations
from tunesmith.data.render import Renderer
from tunesmith.data.sources import Row, is_bundled, load_rows
from tunesmith.errors import DataError, RunError
from tunesmith.events import Note, Progress, Watch
from tunesmith.export.manifest import read_manifest
from tunesmith.generate.compare import Comparison, compare, spread
from tunesmith.generate.session import Session
from tunesmith.places import held_none, own_rows
from tunesmith.recipe import Recipe
from tunesmith.training.row_loss import row_losses
from tunesmith.training.step import PackLoss, choose_loss


@dataclass(frozen=True)
class Judged:
    """Rows to judge by. asides: see `exact_matches`."""

    rows: Sequence[Conversation]
    asides: tuple[str, ...] = ()


def held_out_rows(folder: Path, recipe: Recipe, renderer: Renderer, watch: Watch) -> Judged:
    """The rows a run held out, from its data and its seed.

    Raises:
        RunError: it held none out, its data are gone, or they are not what they were.
    """
    own = own_rows(folder)

    def told(done: int, total: int) -> None:
        watch(Progress("rows", done, total))

    try:
        limit = context_of(positions_in(resolve(recipe.model_name_or_path)), renderer.tokenizer)
        data = prepare(recipe, renderer, limit, told, Cache(cache_dir() / "rows"))
    except DataError as error:
        raise RunError(f"The rows that {folder} held out cannot be read again. {error.what}", f"{error.fix} Or: {own}") from error
    if not data.questions:
        raise held_none(folder)
    manifest = read_manifest(folder)
    same = {"held_out_sha256": fingerprint(data.questions), "data_sha256": data.facts.sha256}
    for name, found in same.items():  # the held-out rows themselves where they are known, or else the others
        if isinstance(then := manifest.get(name), str):
            if then != found:
                raise RunError(
                    f"The data of {folder} changed since it was trained (SHA-256 {then[:12]}… then, {found[:12]}… now): "
                    "rows held out now may have been trained on.",
                    f"Put the data back, or: {own}",
                )
            return Judged(data.questions, data.asides)
    watch(Note(f"{folder} does not say which data it was trained on, so nothing shows that these rows were held out"))
    return Judged(data.questions, data.asides)


def rows_of(name: str, recipe: Recipe, watch: Watch) -> Judged:
    """Rows of the user's own, read as the run's own were if they have the same columns. Raises DataError.

    Args:
        name: a file, a folder, a hub id, or the bundled data, of which its test rows are taken.
    """
    bundled = is_bundled(name)
    bad = BadRows(recipe.on_bad_row)
    rows = load_rows(name, "test" if bundled else recipe.dataset_split, bad=bad)
    try:
        columns = _columns(rows, name, recipe)
    except ColumnsError as error:  # the flags that would name them are those of training
        raise error.without_settings("the run's own data") from error
    conversations = to_conversations(rows, columns, bad)
    if not conversations:
        raise DataError(f"No row of {name} can be used.", "Look at them with `tunesmith preview`.")
    if bad.count:
        watch(Note(f"left out: {bad.facts.describe()}"))
    return Judged(conversations, asides_of(name) if bundled else ())


def _columns(rows: Sequence[Row], name: str, recipe: Recipe) -> Columns:
    """As the run's recipe names them, where all of those are there, or in its format, where they have it."""
    kinds = ("messages", "prompt", "completion", "system", "text", "tools")
    named = {kind: column for kind in kinds if (column := getattr(recipe, kind))}
    if named and set(named.values()) <= set(rows[0].values):
        return find_columns(rows, name, **named, format=recipe.dataset_format)
    with suppress(ColumnsError):
        return find_columns(rows, name, format=recipe.dataset_format)
    return find_columns(rows, name)


def judge(
    session: Session, judged: Judged, watch: Watch, *, rows: int | None = None, loss_of: PackLoss | None = None, **options: Any
) -> Comparison:
    """Compare the model of a session with and without its adapter.

    Args:
        rows: look at so many at most, spread over all. loss_of: of the session's model, if it is known already.
        options: see `compare`.
    """
    base = session.model.get_base_model()
    loss_of = loss_of or choose_loss(base)[0]
    chosen = [judged.rows[i] for i in spread(len(judged.rows), rows)]
    if len(chosen) < len(judged.rows):
        watch(Note(f"Looking at {len(chosen):,} of {len(judged.rows):,} rows"))

    def losses(examples: Sequence[Example], untuned: bool) -> list[tuple[float, int]]:
        adapter: AbstractContextManager[None] = session.model.disable_adapter() if untuned else nullcontext()
        with adapter:
            return [(loss.total, loss.tokens) for loss in row_losses(base, loss_of, examples)]

    def told(what: str, done: int, total: int) -> None:
        watch(Progress(what, done, total))

    return compare(session, chosen, losses, judged.asides, told=told, **options)
