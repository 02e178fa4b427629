"""Proves that a preview tells what the preparation does, whatever the rows are, and how it comes to its verdict."""

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data import preview as module
from tunesmith.data import reading
from tunesmith.data.cache import Cache
from tunesmith.data.dataset import prepare
from tunesmith.data.preview import GOOD, LOOK, WILL_NOT, Preview, preview
from tunesmith.data.render import Renderer
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe

SUBJECTS = ("wind", "river", "bridge", "camp", "table", "night", "force")
VERBS = ("is cold", "can walk", "may speak", "will run", "did listen")
ROWS = [
    {"prompt": f"Why is it that the {s} {v}?", "completion": f"It was so that the {s} {v} before."} for s in SUBJECTS for v in VERBS
]
LIMIT = 256


@pytest.fixture
def look(tiny_tokenizer: Any, tmp_path: Path) -> Any:
    """Previews rows given as objects (or as raw lines) under these settings."""

    def run(rows: list[Any], row: str | None = None, shown: int = 3, **settings: Any) -> Preview:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        recipe = Recipe.of({"model_name_or_path": "tiny", "dataset_name": str(path), **settings})
        return preview(recipe, Renderer(tiny_tokenizer, recipe.assistant_only_loss), LIMIT, shown, row)

    return run


def test_good_rows_are_good_and_the_numbers_are_the_preparations(look: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    seen = look(ROWS, val_size=5)
    assert seen.verdict.word == GOOD, seen.verdict
    recipe = Recipe.of({"dataset_name": str(tmp_path / "rows.jsonl"), "val_size": 5})
    data = prepare(recipe, Renderer(tiny_tokenizer), LIMIT)
    assert (seen.rows, seen.held_out) == (data.facts.rows, data.facts.held_out) == (30, 5)
    assert seen.looked_at == 30, "held-out rows are not training rows"
    assert seen.cut.shortest == seen.lengths.longest == data.facts.longest == seen.cut.max_length
    assert seen.cut.of_answer_tokens == data.facts.trained
    assert seen.packing.packed_rows == data.facts.packed_rows
    assert seen.packing.filled == data.facts.tokens / (data.facts.packed_rows * data.facts.max_length)
    assert seen.cut.stops == 30
    assert seen.prefix.saved > 0


def test_what_max_length_cuts_is_said_in_answer_tokens_with_the_length_that_cuts_none(look: Any) -> None:
    whole = look(ROWS).cut
    seen = look(ROWS, max_length=whole.shortest - 4)
    assert seen.cut.rows > 0
    assert seen.cut.answer_tokens > 0
    assert seen.cut.shortest == whole.shortest
    assert seen.verdict.word == LOOK
    assert seen.verdict.settings == {"max_length": whole.shortest}
    assert look(ROWS, max_length=whole.shortest).verdict.word == GOOD


def test_nothing_left_to_train_will_not_train_and_says_which_length_would_do(look: Any) -> None:
    seen = look(ROWS, max_length=4)
    assert seen.verdict.word == WILL_NOT
    assert "No answer token" in seen.verdict.reasons[0]
    assert seen.verdict.settings == {"max_length": seen.cut.shortest}
    assert seen.cut.whole_answers == len(ROWS)
    assert all(piece.cut for row in seen.shown for piece in row.pieces[4:])


def test_bad_rows_will_not_train_are_all_counted_and_the_rest_is_shown(look: Any) -> None:
    bad = [{"prompt": "a", "completion": ""}, '{"prompt": ', {"prompt": 3, "completion": "b"}]
    seen = look([*ROWS, *bad])
    assert seen.verdict.word == WILL_NOT
    assert seen.verdict.settings == {"on_bad_row": "skip"}
    assert seen.bad.count == 3
    assert sum("line 3" in reason for reason in seen.bad.reasons) == 3
    assert seen.rows == len(ROWS)
    assert seen.packing is not None
    skipped = look([*ROWS, *bad], on_bad_row="skip")
    assert skipped.verdict.word == LOOK
    assert skipped.bad.count == 3


@pytest.mark.parametrize("rows", [[], ["{"], [{"left": "a", "right": "b"}]])
def test_data_that_cannot_be_read_at_all_will_not_train(look: Any, rows: list[Any]) -> None:
    seen = look(rows)
    assert seen.verdict.word == WILL_NOT
    assert seen.verdict.reasons[0]
    assert seen.verdict.fix
    assert seen.shown == seen.findings == ()
    assert seen.lengths is seen.cut is seen.packing is seen.prefix is None


def test_columns_that_are_certain_are_settings_to_go_on_with_and_no_others(look: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    odd, unsure = [{"left": "a", "right": "b"}], [{"left": "a", "middle": "b", "right": "c"}]
    assert look(odd).verdict.settings == {"prompt": "left", "completion": "right"}
    assert look(unsure).verdict.settings == {}
    assert look([{**ROWS[0], "label": False}]).verdict.settings == {}
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(odd[0]), encoding="utf-8")
    assert look(ROWS, eval_dataset=str(other)).verdict.settings == {}
    both = Recipe.of({"dataset_name": f"{tmp_path / 'rows.jsonl'},{other}"})
    seen = preview(both, Renderer(tiny_tokenizer), LIMIT)
    assert "(left, right)" in seen.verdict.reasons[0]
    assert seen.verdict.settings == {}


def test_columns_that_only_later_rows_have_are_told(look: Any) -> None:
    seen = look([*ROWS * 3, {**ROWS[0], "system": "Be brief."}])
    assert any("'system' first stands in" in note and "line 106, and is read" in note for note in seen.notes)


def test_what_spoils_a_whole_file_is_no_bad_row(look: Any) -> None:
    seen = look(["[1]"])
    assert "begins a list" in seen.verdict.reasons[0]
    assert seen.bad.count == 0
    broken = look(["{", "{"])
    assert broken.bad.count == 2
    assert len(broken.verdict.reasons) == 1
    assert "All 2 rows" in broken.verdict.reasons[0]
    header = look([{"left": "a", "right": "b"}])
    assert header.bad.count == 0
    assert len(header.verdict.reasons) == 1


def test_a_file_that_is_damaged_after_a_bad_row_would_not_train_without_that_row(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na\n" + "Why is it?,So it is.\n" * 9 + '"Who,I.\n', encoding="utf-8")
    seen = preview(Recipe.of({"dataset_name": str(path)}), Renderer(tiny_tokenizer), LIMIT)
    assert seen.verdict.word == WILL_NOT
    assert "line 2 has 1 fields" in seen.verdict.reasons[0]
    assert "line 12: a quoted field" in seen.verdict.reasons[1]
    assert seen.verdict.settings == {}
    assert seen.bad.count == 1


def test_packed_examples_are_those_that_are_used(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    recipe = Recipe.of({"datasets": [{"path": str(tmp_path / "half.jsonl"), "weight": 0.2}], "packing": "none"})
    seen = preview(recipe, Renderer(tiny_tokenizer), LIMIT)
    assert (seen.rows, seen.packing.packed_rows, seen.packing.per_row) == (35, 7, 1)


def test_a_row_is_shown_by_its_number_or_name_even_if_held_out(look: Any) -> None:
    for line in (1, 7, 35):
        (row,) = look(ROWS, row=str(line), val_size=10).shown
        assert row.where.endswith(f"rows.jsonl line {line}")
    (row,) = look(ROWS, row="line 35").shown
    assert ROWS[34]["prompt"] in "".join(piece.text for piece in row.pieces)
    with pytest.raises(DataError, match="no row 99"):
        look(ROWS, row="99")


def test_a_row_at_fault_that_is_asked_for_says_what_is_wrong_with_it(look: Any) -> None:
    bad = [{"prompt": "a", "completion": ""} for _ in range(9)]
    with pytest.raises(DataError, match=r"Row 43 cannot be shown: .*rows.jsonl line 43 has no assistant text"):
        look([*ROWS, *bad], row="43")


@pytest.mark.parametrize("most", [9, 38, 39, 100])
def test_rows_overheard_while_they_are_prepared_tell_what_rows_read_again_tell(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(reading, "MOST", most)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *ROWS[:4], {"prompt": 1}, {"prompt": "a"}]), encoding="utf-8")
    recipe = Recipe.of({"dataset_name": str(path), "val_size": 7, "on_bad_row": "skip"})
    opened: list[Recipe] = []
    open_data = reading.open_data
    monkeypatch.setattr(reading, "open_data", lambda recipe, bad: opened.append(recipe) or open_data(recipe, bad))
    renderer, cache = Renderer(tiny_tokenizer), Cache(tmp_path / "cache")
    first = preview(recipe, renderer, LIMIT, cache=cache)
    assert len(opened) == (most < 39), "read again only where a draw has to be made"
    assert preview(recipe, renderer, LIMIT, cache=cache) == first
    assert len(opened) == (most < 39) + 1, "the cache holds no text"


def test_the_first_and_the_longest_row_are_shown(look: Any) -> None:
    long = {"prompt": "Why? " * 20, "completion": "It was so. " * 5}
    seen = look([*ROWS[:20], long, *ROWS[20:]], shown=2)
    assert [row.where.rsplit(" ", 1)[1] for row in seen.shown] == ["1", "21"]
    assert look(ROWS, shown=0).shown == ()
    assert len(look(ROWS[:2], shown=9).shown) == 2


def test_one_row_and_every_packing(look: Any) -> None:
    for packing in ("bfd", "wrapped", "none"):
        seen = look(ROWS[:1], packing=packing)
        assert seen.rows == 1
        assert seen.verdict.word == GOOD
    seen = look(ROWS, packing="wrapped", max_length=20)
    assert seen.cut is None, "a stream is not cut"
    assert not any(piece.cut for row in seen.shown for piece in row.pieces)


def test_a_prefix_that_is_switched_off_is_still_measured(look: Any) -> None:
    on, off = look(ROWS), look(ROWS, shared_prefix=False)
    assert on.prefix.on
    assert not off.prefix.on
    assert off.prefix.saved == on.prefix.saved > 0


def test_of_many_rows_a_draw_is_looked_into_and_counts_stay_exact(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST", 12)
    monkeypatch.setattr(module, "MEASURED", 6)
    cut = look(ROWS).cut.shortest - 3
    whole = look(ROWS, max_length=cut)
    assert (whole.rows, whole.looked_at, whole.lengths.measured) == (35, 12, 6)
    monkeypatch.undo()
    exact = look(ROWS, max_length=cut).cut
    counted = ("rows", "answer_tokens", "of_answer_tokens", "of_rows", "whole_answers", "shortest")
    assert [getattr(whole.cut, name) for name in counted] == [getattr(exact, name) for name in counted]


def test_conversations_of_many_turns_and_plain_texts(look: Any) -> None:
    turns = [{"role": r, "content": f"{r} {i}"} for i in range(2) for r in ("user", "assistant")]
    seen = look([{"messages": [{"role": "system", "content": f"Be {i}."}, *turns]} for i in range(4)])
    assert len(seen.system_prompts) == 4
    assert sum(p.trained and p.special for p in seen.shown[0].pieces) == 2, "a stop token for each answer"
    plain = look([{"text": f"The wind {i} is cold in the camp."} for i in range(8)])
    assert plain.verdict.word != WILL_NOT
    assert plain.shown[0].trained == plain.shown[0].tokens - 1


def test_what_was_done_to_rows_is_told(look: Any) -> None:
    typed = {"prompt": "What does <|im_end|> mean?", "completion": "It ends a turn of a conversation."}
    (note,) = look([*ROWS, typed]).notes
    assert note.startswith("control tokens of this model are spelled out in 1 row")
    assert look(ROWS).notes == ()
