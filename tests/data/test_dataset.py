"""Proves that what is trained is what the recipe asked for, that held-out rows stay out, and that the facts told are true."""

import json
from itertools import chain

import pytest

from tunesmith.data.dataset import Dataset, fingerprint, prepare
from tunesmith.data.formats import Conversation, Message
from tunesmith.data.render import IGNORE
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe

LIMIT = 512


def _write(path, count: int = 20, start: int = 0) -> str:
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}, it is."} for n in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def rows(tmp_path) -> str:
    return _write(tmp_path / "rows.jsonl")


@pytest.fixture(scope="session")
def load(renderer_of):
    """Prepares a data set from settings."""

    def dataset(name: str, limit: int = LIMIT, watch=lambda done, total: None, **settings) -> Dataset:
        recipe = Recipe.of({"dataset_name": name, **settings})
        return prepare(recipe, renderer_of("chatml", recipe.assistant_only_loss), limit, watch)

    return dataset


def _trained_on(dataset: Dataset) -> set[str]:
    return {example.where for example in chain.from_iterable(dataset.rows)}


def _held(dataset: Dataset) -> set[str]:
    return {example.where for example in dataset.held_out}


@pytest.mark.parametrize(("val_size", "count"), [(0, 0), (0.1, 2), (0.25, 5), (0.9, 18), (1, 1), (7, 7), (19, 19)])
@pytest.mark.parametrize("packing", ["bfd", "none"])
def test_val_size_is_a_share_or_a_count_and_held_out_rows_are_never_trained_on(load, rows, val_size, count, packing):
    dataset = load(rows, val_size=val_size, packing=packing)
    assert len(dataset.held_out) == len(dataset.questions) == dataset.facts.held_out == count
    assert _held(dataset) == {question.where for question in dataset.questions}
    assert _held(dataset) | _trained_on(dataset) == {f"{rows} line {n}" for n in range(1, 21)}
    assert not _held(dataset) & _trained_on(dataset)
    assert dataset.facts.rows == 20 - count


@pytest.mark.parametrize("val_size", [0.99, 20, 21])
def test_holding_out_every_row_is_refused(load, rows, val_size):
    with pytest.raises(DataError, match="holds out all 20 rows"):
        load(rows, val_size=val_size)


def test_a_share_above_zero_holds_out_at_least_one_row(load, tmp_path):
    assert len(load(_write(tmp_path / "few.jsonl", 4), val_size=0.1).held_out) == 1


def test_the_seed_decides_which_rows_are_held_out(load, rows):
    draws = [_held(load(rows, val_size=5, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_an_eval_dataset_is_held_out_whole_and_nothing_else(load, rows, tmp_path):
    other = _write(tmp_path / "eval.jsonl", 3, start=100)
    dataset = load(rows, eval_dataset=other)
    assert _held(dataset) == {f"{other} line {n}" for n in (1, 2, 3)}
    assert _trained_on(dataset) == {f"{rows} line {n}" for n in range(1, 21)}


def test_an_eval_dataset_may_have_columns_of_its_own(load, rows, tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text('{"question": "Where?", "answer": "There."}\n', encoding="utf-8")
    (question,) = load(rows, eval_dataset=str(path)).questions
    assert [message.content for message in question.messages] == ["Where?", "There."]


def test_an_eval_dataset_is_read_by_what_it_holds_and_refused_without_flags_of_training(load, rows, tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"prompt": '[{"role": "user", "content": "Where?"}]', "completion": "There."}), encoding="utf-8")
    (question,) = load(rows, eval_dataset=str(path)).questions
    assert question.messages[0].content == "Where?"
    path.write_text('{"left": "a", "right": "b"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"\(left, right\).*Call its columns as the data that are trained on do") as caught:
        load(rows, eval_dataset=str(path))
    assert "--prompt" not in caught.value.fix


def test_the_bundled_data_holds_out_its_test_split_unless_told_otherwise(load):
    dataset = load("yoda", max_rows=30)
    assert dataset.facts.held_out == 80
    assert not _held(dataset) & _trained_on(dataset)
    assert {"Hmm.", "Yeesss."} & set(dataset.asides)
    drawn = load("yoda", max_rows=30, val_size=5)
    assert (drawn.facts.rows, drawn.facts.held_out) == (25, 5)
    assert all("train.jsonl" in where for where in _held(drawn))


def test_a_folder_of_ones_own_called_like_the_bundled_data_is_not_taken_for_it(load, tmp_path, monkeypatch):
    (tmp_path / "yoda").mkdir()
    _write(tmp_path / "yoda" / "train.jsonl", 6)
    monkeypatch.chdir(tmp_path)
    dataset = load("yoda")
    assert dataset.facts.rows == 6
    assert dataset.held_out == []
    assert dataset.asides == ()


def test_only_the_first_rows_are_used_when_asked(load, rows):
    assert load(rows, max_rows=3).facts.rows == 3


def test_the_columns_named_are_the_columns_read(load, rows):
    assert load(rows).facts.columns == "'prompt' → 'completion'"
    turned = load(rows, prompt="completion", completion="prompt", packing="none")
    labels = [label for label in turned.rows[0][0].labels if label != IGNORE]
    assert labels != [label for label in load(rows, packing="none").rows[0][0].labels if label != IGNORE]


def test_max_length_is_by_default_the_longest_row_and_nothing_is_cut(load, rows):
    facts = load(rows).facts
    assert facts.max_length == facts.longest < LIMIT
    assert (facts.cut_rows, facts.lost_tokens) == (0, 0)


def test_max_length_is_by_default_no_more_than_the_model_can_see(load, rows):
    longest = load(rows).facts.longest
    dataset = load(rows, limit=longest - 2)
    assert dataset.facts.max_length == longest - 2
    assert dataset.facts.cut_rows > 0
    assert dataset.facts.lost_tokens > 0


def test_a_max_length_beyond_the_model_is_refused(load, rows):
    with pytest.raises(DataError, match=f"more than the {LIMIT} tokens"):
        load(rows, max_length=LIMIT + 1)


def test_cut_rows_and_lost_answer_tokens_are_counted(load, rows):
    whole = load(rows, packing="none")
    length = whole.facts.longest - 3
    facts = load(rows, packing="none", max_length=length).facts
    examples = [row[0] for row in whole.rows]
    assert facts.cut_rows == sum(len(e.input_ids) > length for e in examples)
    assert facts.lost_tokens == whole.facts.trained - facts.trained > 0
    assert facts.tokens == sum(min(len(e.input_ids), length) for e in examples)


def test_a_max_length_that_cuts_every_answer_off_is_refused_with_one_that_does_not(load, rows):
    longest = load(rows).facts.longest
    with pytest.raises(DataError, match="cuts every answer off") as caught:
        load(rows, max_length=4)
    assert str(longest) in caught.value.fix


def test_rows_whose_answer_is_cut_off_are_not_trained_on(load, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Where?", "completion": "There."}\n' + json.dumps({"prompt": "long " * 60, "completion": "x"}))
    dataset = load(str(path), max_length=60)
    assert _trained_on(dataset) == {f"{path} line 1"}
    assert dataset.facts.cut_rows == 1


@pytest.mark.parametrize("packing", ["bfd", "wrapped", "none"])
def test_facts_count_what_is_trained(load, rows, packing):
    dataset = load(rows, packing=packing, max_length=100)
    examples = list(chain.from_iterable(dataset.rows))
    assert dataset.facts.packed_rows == len(dataset.rows)
    assert dataset.facts.tokens == sum(len(e.input_ids) for e in examples)
    assert dataset.facts.trained == sum(e.trained for e in examples) > 0
    assert all(sum(len(e.input_ids) for e in row) <= 100 for row in dataset.rows)


def test_wrapped_rows_lose_no_token_to_max_length(load, rows):
    facts = load(rows, packing="wrapped", max_length=10).facts
    assert (facts.cut_rows, facts.lost_tokens) == (0, 0)
    assert facts.tokens == load(rows, packing="none").facts.tokens


def test_packed_rows_without_a_token_to_train_are_refused(load, rows):
    with pytest.raises(DataError, match=r"No answer token is left .*Raise max_length; \d+ cuts nothing"):
        load(rows, packing="wrapped", max_length=1)


def test_of_rows_longer_than_the_model_can_see_no_longer_rows_are_advised(load, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "long " * 400, "completion": "There."}), encoding="utf-8")
    with pytest.raises(DataError, match=r"No answer token .*Shorten or split the rows: the longest has 1,\d+ tokens, .* sees 64\."):
        load(str(path), limit=64)


def test_held_out_rows_are_whole_up_to_what_the_model_can_see(load, rows, tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"prompt": "Where?", "completion": "long " * 40}), encoding="utf-8")
    whole = len(load(str(path)).rows[0][0].input_ids)
    assert [len(e.input_ids) for e in load(rows, eval_dataset=str(path)).held_out] == [whole]
    assert [len(e.input_ids) for e in load(rows, limit=whole - 5, eval_dataset=str(path)).held_out] == [whole - 5]


def test_held_out_rows_never_exceed_the_model_even_when_training_rows_do(load, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Where?", "completion": text} for text in ("long " * 40, "There.")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = load(str(path), limit=60, eval_dataset=str(path))
    assert max(len(e.input_ids) for e in dataset.held_out) == 60


def test_every_token_is_trained_when_answers_alone_are_not_asked_for(load, rows):
    dataset = load(rows, assistant_only_loss=False)
    assert all(example.labels == example.input_ids for example in chain.from_iterable(dataset.rows))


def test_rendering_is_watched_to_the_last_row(load, rows):
    seen = []
    load(rows, val_size=2, watch=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (20, 20)
    assert seen == sorted(seen)


def _talk(*messages: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in messages), "row")


def test_the_fingerprint_is_that_of_the_rows_that_are_trained(load, rows, tmp_path):
    first = load(rows).facts.sha256
    assert load(_write(tmp_path / "same rows elsewhere.jsonl")).facts.sha256 == first
    assert load(_write(tmp_path / "one row less.jsonl", 19)).facts.sha256 != first
    assert load(rows, val_size=1).facts.sha256 != first


def test_any_change_in_any_row_changes_the_fingerprint():
    rows = [_talk(("user", "a"), ("assistant", "b")), _talk(("user", "c"), ("assistant", "d"))]
    changed = [
        [rows[0], _talk(("user", "c"), ("assistant", "D"))],
        [rows[0], _talk(("system", "c"), ("assistant", "d"))],
        [rows[1], rows[0]],
        [_talk(*(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))],
        [_talk(("user", "ab"), ("assistant", "")), rows[1]],
        rows[:1],
    ]
    assert len({fingerprint(rows), *map(fingerprint, changed)}) == 1 + len(changed)
    assert fingerprint(rows) == fingerprint(list(rows))


def test_a_length_that_cuts_every_stop_token_off_is_refused(tmp_path, renderer_of):
    renderer = renderer_of("chatml")
    path = _write(tmp_path / "rows.jsonl", 4)
    shortest = min(len(e.input_ids) for row in prepare(Recipe.of({"dataset_name": path}), renderer, LIMIT).rows for e in row)
    with pytest.raises(DataError, match="stop token"):
        prepare(Recipe.of({"dataset_name": path, "max_length": shortest - 4}), renderer, LIMIT)
