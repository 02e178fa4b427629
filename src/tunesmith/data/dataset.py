"""A data set ready to train on: rows read, rendered, cut and packed, with the facts a user should see."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.data.formats import Columns, Conversation, find_columns, to_conversations
from tunesmith.data.packing import plan_rows
from tunesmith.data.render import Example, Renderer, cut
from tunesmith.data.sources import Row, is_bundled, load_rows
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe


@dataclass(frozen=True)
class DataFacts:
    """rows, held_out: counts. columns: how rows were read. max_length: tokens, longest: the longest row's. cut_rows,
    lost_tokens: rows cut and answer tokens lost by it. packed_rows: rows of max_length. tokens, trained: in an epoch.
    sha256: of the rows' messages."""

    rows: int
    held_out: int
    columns: str
    max_length: int
    longest: int
    cut_rows: int
    lost_tokens: int
    packed_rows: int
    tokens: int
    trained: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """rows: packed rows to train on. held_out: examples never trained on. questions: their conversations. asides:
    interjections that close answers of the bundled data and say nothing about whether an answer is right."""

    rows: list[list[Example]]
    held_out: list[Example]
    questions: list[Conversation]
    facts: DataFacts
    asides: tuple[str, ...] = ()


def prepare(
    recipe: Recipe, renderer: Renderer, model_limit: int, watch: Callable[[int, int], None] = lambda done, total: None
) -> Dataset:
    """Read, render, cut and pack the recipe's data.

    Args:
        model_limit: tokens the model can see. watch: told how many rows of how many are rendered.

    Raises:
        DataError: rows that cannot be read or trained on; see the modules this calls.
    """
    rows = load_rows(recipe.dataset_name, recipe.dataset_split, recipe.dataset_config, recipe.max_rows)
    columns = find_columns(rows, recipe.dataset_name, recipe.messages, recipe.prompt, recipe.completion)
    conversations = to_conversations(rows, columns)
    conversations, questions = _hold_out(recipe, conversations, columns)
    examples = renderer.examples(conversations, lambda done: watch(done, len(conversations)))
    longest = max(len(example.input_ids) for example in examples)
    max_length = recipe.max_length or min(longest, model_limit)
    if max_length > model_limit:
        raise DataError(
            f"max_length {max_length} is more than the {model_limit} tokens this model can see.", f"Use at most {model_limit}."
        )
    if recipe.packing == "wrapped":
        cut_rows = lost = 0
    else:
        examples, cut_rows, lost = cut(examples, max_length)
    packed = plan_rows([e for e in examples if e.trained], recipe.packing, max_length)
    trained = sum(example.trained for row in packed for example in row)
    _check_trained(packed, trained, renderer.stop_token_id, max_length, longest)
    held_out, _, _ = cut(renderer.examples(questions), model_limit)
    facts = DataFacts(
        len(conversations), len(questions), columns.describe(), max_length, longest, cut_rows, lost, len(packed),
        sum(len(e.input_ids) for row in packed for e in row),
        trained,
        fingerprint(conversations),
    )  # fmt: skip
    return Dataset(packed, [e for e in held_out if e.trained], questions, facts, _asides(recipe.dataset_name, rows))


def _check_trained(packed: list[list[Example]], trained: int, stop: int, max_length: int, longest: int) -> None:
    """Raises DataError if cutting left no answer token to train on, or no stop token."""
    if trained == 0:
        raise DataError(
            f"No answer token is left to train on: max_length {max_length} cuts every answer off.",
            f"Raise max_length; {longest} cuts nothing.",
        )
    if not any(stop in example.labels for row in packed for example in row):
        raise DataError(f"max_length {max_length} cuts the stop token off every answer.", f"Raise it; {longest} cuts nothing.")


def _hold_out(recipe: Recipe, conversations: list[Conversation], columns: Columns) -> tuple[list[Conversation], list[Conversation]]:
    """Rows to train on and rows held out: a file of its own, the bundled test split, or a seeded draw."""
    if recipe.eval_dataset or (is_bundled(recipe.dataset_name) and not recipe.val_size):
        name, split = (recipe.eval_dataset, "train") if recipe.eval_dataset else (recipe.dataset_name, "test")
        rows = load_rows(name, split)
        kept = columns if set(_names(columns)) <= set(rows[0].values) else find_columns(rows, name)
        return conversations, to_conversations(rows, kept)
    share = recipe.val_size * len(conversations)
    count = max(round(share), int(share > 0)) if recipe.val_size < 1 else int(recipe.val_size)
    if count >= len(conversations):
        raise DataError(
            f"val_size {recipe.val_size} holds out all {len(conversations)} rows; none is left to train on.", "Lower val_size."
        )
    chosen = set(random.Random(recipe.seed).sample(range(len(conversations)), count))
    held = [c for i, c in enumerate(conversations) if i in chosen]
    return [c for i, c in enumerate(conversations) if i not in chosen], held


def _names(columns: Columns) -> list[str]:
    return [name for name in (columns.messages, columns.prompt, columns.completion) if name]


def _asides(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """What translation_extra adds to translation in the bundled data."""
    if not is_bundled(name):
        return ()
    added = {row.values["translation_extra"].removeprefix(row.values["translation"]).strip() for row in rows}
    return tuple(sorted(added - {""}))


def fingerprint(conversations: Sequence[Conversation]) -> str:
    """SHA-256 of all messages, in order."""
    digest = hashlib.sha256()
    for conversation in conversations:
        for message in conversation.messages:
            digest.update(f"{message.role}\0{message.content}\0".encode("utf-8", "surrogatepass"))
        digest.update(b"\1")
    return digest.hexdigest()
