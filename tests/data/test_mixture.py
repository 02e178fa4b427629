"""Proves that several data sets become one, each read in its own way and as often as its weight says."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunesmith
from tunesmith.data.bad_rows import refuse
from tunesmith.data.dataset import Dataset, prepare
from tunesmith.data.mixture import open_data, parts_of, times
from tunesmith.errors import DataError, RecipeError
from tunesmith.mixed_data import COLUMNS, MixedData
from tunesmith.recipe import Recipe


def _write(path, count: int, make=lambda n: {"prompt": f"Question {n}?", "completion": f"Answer {n}."}) -> str:
    path.write_text("".join(json.dumps(make(n)) + "\n" for n in range(count)), encoding="utf-8")
    return str(path)


@pytest.fixture
def pairs(tmp_path) -> str:
    return _write(tmp_path / "pairs.jsonl", 10)


@pytest.fixture
def spoken(tmp_path) -> str:
    return _write(
        tmp_path / "spoken.jsonl", 6,
        lambda n: {"conversations": [{"from": "human", "value": f"Hm {n}?"}, {"from": "gpt", "value": f"Aha {n}."}]},
    )  # fmt: skip


@pytest.fixture
def load(renderer_of):
    def dataset(**settings) -> Dataset:
        return prepare(Recipe.of(settings), renderer_of("chatml"), 512)

    return dataset


def uses(dataset: Dataset) -> Counter[str]:
    return Counter(example.where for row in dataset.rows for example in row)


def test_each_data_set_is_read_in_its_own_way_and_told(load, pairs, spoken):
    data = load(datasets=[pairs, {"path": spoken}])
    assert len(uses(data)) == data.facts.rows == 16
    assert data.facts.columns == (
        f"{pairs} × 1: 'prompt' → 'completion' | {spoken} × 1: messages from 'conversations' (from and value)"
    )


def test_names_with_commas_are_several_data_sets(load, pairs, spoken):
    assert uses(load(dataset_name=f"{pairs}, {spoken}")) == uses(load(datasets=[pairs, spoken]))


def test_a_pattern_is_all_files_it_fits(load, tmp_path):
    for n in range(3):
        _write(tmp_path / f"part-{n}.jsonl", 2)
    (tmp_path / "part-3.txt").write_text("not data")
    assert load(dataset_name=str(tmp_path / "part-*")).facts.rows == 6


def test_a_file_with_a_comma_in_its_name_is_that_file(load, tmp_path):
    assert load(dataset_name=_write(tmp_path / "a,b.jsonl", 3)).facts.rows == 3


@pytest.mark.parametrize(("weight", "total"), [(1, 10), (2, 20), (0.5, 5), (2.3, 23), (0.06, 1)])
def test_a_weight_says_how_often_rows_are_used(load, pairs, spoken, weight, total):
    used = uses(load(datasets=[{"path": pairs, "weight": weight}, spoken]))
    of_pairs = [count for where, count in used.items() if where.startswith(pairs)]
    assert sum(of_pairs) == total
    assert max(of_pairs, default=0) - min(of_pairs, default=0) <= 1
    assert sum(used.values()) == total + 6


def test_the_seed_decides_which_rows_a_fraction_takes(load, pairs, spoken):
    half = {"datasets": [{"path": pairs, "weight": 0.5}, spoken]}
    assert uses(load(**half)) == uses(load(**half))
    assert len({frozenset(uses(load(**half, seed=seed))) for seed in range(5)}) > 1


def test_rows_used_twice_are_never_both_trained_on_and_held_out(load, pairs, spoken):
    data = load(datasets=[{"path": pairs, "weight": 3}, spoken], val_size=8)
    assert data.facts.held_out == 8
    assert not {example.where for example in data.held_out} & set(uses(data))


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]), max_size=40), st.integers(0, 5))
def test_every_weight_is_kept_to_as_nearly_as_whole_rows_can(weights, seed):
    used = times(np.array(weights, np.float64), seed)
    for weight in set(weights):
        alike = [count for count, w in zip(used, weights) if w == weight]
        assert abs(sum(alike) - weight * len(alike)) <= 0.5
        assert set(alike) <= {int(weight), int(weight) + 1}


def test_split_type_and_columns_are_those_of_the_entry(tmp_path):
    from datasets import Dataset as Rows
    from datasets import DatasetDict

    folder = str(tmp_path / "saved")
    rows = [{"instruction": "Add.", "input": "12", "output": "There.", "text": "All of it."}]
    DatasetDict(train=Rows.from_list(rows * 2), test=Rows.from_list(rows)).save_to_disk(folder)
    entries = [{"path": folder, "split": "test"}, {"path": folder, "type": "text"}]
    parts = open_data(Recipe.of({"datasets": entries}), refuse).parts
    assert [len(list(part.conversations)) for part in parts] == [1, 2]
    assert [part.columns.describe().partition(";")[0] for part in parts] == [
        "'instruction' + 'input' → 'output'", "plain text from 'text', every token trained",
    ]  # fmt: skip


def test_a_mixture_survives_yaml(tmp_path, pairs, spoken):
    recipe = Recipe.of({"datasets": [pairs, {"path": spoken, "weight": 2, "type": "sharegpt"}]})
    recipe.write(tmp_path / "run.yaml")
    assert Recipe.of(Recipe.read(tmp_path / "run.yaml")) == recipe
    assert recipe.dataset_name == f"{pairs} + {spoken}"


@pytest.mark.parametrize(
    ("datasets", "says"),
    [
        ([], "datasets names no data set"),
        ([{"weight": 2}], "datasets.0.path"),
        ([{"path": "a", "weight": 0}], "datasets.0.weight: 0 will not do"),
        ([{"path": "a", "wieght": 1}], r"datasets\.0: .*no entry has a key 'wieght' \(did you mean weight\?\); there are path"),
        ([{"path": "a", "dataset_format": "alpaca"}], r"no entry has a key 'dataset_format' \(did you mean type\?\)"),
        ([{"path": "a"}, ["b"]], r"datasets\.1: \['b'\] will not do: a path is needed here, or keys with one"),
        ([None], r"datasets\.0: None will not do: a path is needed here"),
        ([{"path": "a", "type": "alpca"}], "datasets.0.type: 'alpca'"),
        ([{"path": "a", "prompt": "q"}], "give both"),
        ("a.jsonl", "datasets"),
        (["a.jsonl", {"path": "a.jsonl", "weight": 2}], "datasets names a.jsonl twice"),
        (["a.jsonl", "./b/../a.jsonl"], "datasets names a.jsonl twice"),
    ],
    ids=str,
)
def test_a_mixture_that_is_none_is_refused(datasets, says):
    with pytest.raises(RecipeError, match=says):
        Recipe.of({"datasets": datasets})


def test_entries_may_be_objects_from_python():
    entry = MixedData(path="a.jsonl", weight=2)
    assert Recipe.of({"datasets": [entry, "b.jsonl"]}).datasets == [entry, MixedData(path="b.jsonl")]


def test_a_mixture_beside_another_data_set_is_a_contradiction():
    with pytest.raises(RecipeError, match="give one"):
        Recipe.of({"dataset_name": "yoda", "datasets": ["a.jsonl"]})


@pytest.mark.parametrize(
    ("beside", "keys"),
    [
        *(({column: "it is"}, f"{column}: it is") for column in COLUMNS),
        ({"conversations": "chat"}, "messages: chat"),
        ({"prompt": "q", "completion": "a"}, "prompt: q, completion: a"),
        ({"dataset_format": "alpaca", "system": "s"}, "type: alpaca, system: s"),
        ({"subset": "small"}, "subset: small"),
        ({"messages": 3}, "messages: '3'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("entry", ["a.jsonl", {"path": "a.jsonl"}, MixedData(path="a.jsonl")], ids=["path", "keys", "object"])
def test_what_an_entry_has_to_say_is_refused_beside_the_mixture_with_the_keys_to_write(beside, keys, entry):
    with pytest.raises(RecipeError, match="beside a mixture and would be ignored: each entry of datasets says itself") as caught:
        Recipe.of({"datasets": [entry, "b.jsonl"], **beside})
    assert f"write `{keys}` into the entry that is meant, such as that of a.jsonl." in caught.value.fix


def test_a_column_is_refused_beside_a_mixture_from_python_before_anything_is_read():
    with pytest.raises(RecipeError, match="messages is given beside a mixture"):
        tunesmith.train("no-such-model", datasets=["none.jsonl"], messages="chat")


def test_settings_beside_a_mixture_that_say_nothing_of_their_own_are_taken():
    named = dict.fromkeys(COLUMNS)
    assert Recipe.of({"datasets": ["a.jsonl"], **named, "dataset_format": "auto", "dataset_split": "train", "max_rows": 5})


def test_a_split_beside_a_mixture_is_that_of_the_entries_without_one():
    entries = [{"path": "a", "split": "dev"}, {"path": "b"}]
    recipe = Recipe.of({"datasets": entries, "split": "test"})
    assert [part.split for part in parts_of(recipe)] == ["dev", "test"]
    with pytest.raises(RecipeError, match=r"dataset_split is given beside a mixture and would be ignored.*`split: test`"):
        Recipe.of({"datasets": entries[:1], "split": "test"})


def test_a_part_that_is_not_there_is_named(load, pairs):
    with pytest.raises(DataError, match=r"There is no file .*none.jsonl"):
        load(datasets=[pairs, "./none.jsonl"])


@pytest.mark.parametrize(
    ("row", "entry", "fix"),
    [
        ({"a b": "x", "said": "y"}, {}, "Name the columns you mean: `prompt: a b, completion: said` in its entry of datasets."),
        ({"body": "x"}, {"text": "boddy"}, "Name the columns you mean: `text: body` in its entry of datasets."),
        ({"body": "x"}, {"type": "alpaca"}, "Name them, or have them found: `type: auto` in its entry of datasets."),
        ({"prompt": "x", "completion": "y", "label": False}, {}, "add: `type: prompt_completion` in its entry of datasets."),
        ({"prompt": "x", "completion": "y", "label": True}, {}, "add `type: prompt_completion` in its entry of datasets. To leave"),
        ({"question": "x", "answer": "y", "context": None}, {}, "add `prompt: question, completion: answer` in its entry of"),
    ],
)
def test_advice_on_how_to_read_an_entry_names_its_keys_and_no_flag(load, tmp_path, row, entry, fix):
    first = _write(tmp_path / "rows.jsonl", 100, lambda n: row)
    with open(first, "a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "label": False, "context": ["a"]}) + "\n")
    with pytest.raises(DataError) as caught:
        load(datasets=[{"path": first, **entry}])
    assert fix in caught.value.fix
    assert "--" not in caught.value.fix.replace("--on-bad-row", "")
    with pytest.raises(DataError, match="--"):
        load(dataset_name=first, **{"dataset_format" if key == "type" else key: value for key, value in entry.items()})


def test_a_table_of_semicolons_is_told(load, tmp_path):
    (tmp_path / "rows.csv").write_text("prompt;completion\nAdd, please: 1, 2;There.\n", encoding="utf-8")
    data = load(dataset_name=str(tmp_path / "rows.csv"))
    assert data.facts.notes[0] == f"{tmp_path}/rows.csv is separated by ';', not by commas"
    assert data.facts.columns == "'prompt' → 'completion'"


def test_a_weight_that_leaves_none_of_its_rows_is_refused(load, pairs, spoken):
    with pytest.raises(DataError, match=r"The weight 0\.04 leaves none of the 10 rows"):
        load(datasets=[{"path": pairs, "weight": 0.04}, spoken])
    with pytest.raises(DataError, match=r"The weight 0\.04 leaves none of the 10 rows"):
        load(datasets=[{"path": pairs, "weight": 0.04}])


def test_a_mixture_whose_used_rows_are_all_held_out_is_refused(load, tmp_path):
    two = _write(tmp_path / "two.jsonl", 2)
    said = []
    for seed in range(20):
        try:
            said.append(uses(load(datasets=[{"path": two, "weight": 0.5}], val_size=1, seed=seed)).total())
        except DataError as error:
            said.append(error.what)
    assert set(said) == {1, "The rows that the weights leave are all held out."}, "some seeds hold out the row that is used"


def test_files_of_a_folder_that_are_not_read_are_told(load, tmp_path):
    _write(tmp_path / "train.jsonl", 3)
    _write(tmp_path / "more.jsonl", 3)
    assert load(dataset_name=str(tmp_path)).facts.columns == "'prompt' → 'completion'; files not read: more.jsonl"
