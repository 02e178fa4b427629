"""Proves that exactly the answers and their stop tokens are trained, on the very tokens that chat will use."""

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.formats import Conversation, Message
from tunesmith.data.render import IGNORE, Example, Renderer, cut
from tunesmith.errors import DataError, ModelError, RowError

NAMES = ["chatml", "llama3", "phi3", "gemma", "mistral", "zephyr", "alpaca"]
ROLE = {"u": "user", "a": "assistant", "s": "system"}

every_family = pytest.mark.parametrize("name", NAMES)
property_of = settings(max_examples=25, deadline=None)

anything = (st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text("ab .,\n\t <|/>[]é", max_size=16)).filter(
    lambda text: "<s>" not in text and "</s>" not in text
)
ordinary = st.text("abcdefgh ,.!?éß日本12\n", min_size=1, max_size=20).map(lambda text: f"x{text}x")


def conversations(text: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str | None, list[tuple[str, str]]]]:
    """An optional system prompt, and one to three turns of question and answer."""
    return st.tuples(st.none() | text, st.lists(st.tuples(text, text), min_size=1, max_size=3))


def talk(turns: str, *contents: str) -> Conversation:
    """A conversation from its roles, a letter a message."""
    return Conversation(tuple(Message(ROLE[turn], content) for turn, content in zip(turns, contents)), "rows.jsonl line 7")


def conversation(drawn: tuple[str | None, list[tuple[str, str]]], system_allowed: bool) -> Conversation:
    system, turns = drawn
    messages = [Message("system", system)] if system is not None and system_allowed else []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return Conversation(tuple(messages), "row")


def trained_runs(example: Example) -> list[list[int]]:
    """Stretches of neighbouring trained tokens."""
    return [list(run) for trained, run in groupby(example.labels, lambda label: label != IGNORE) if trained]


def decode(renderer: Renderer, ids: list[int]) -> str:
    return renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@every_family
@property_of
@given(drawn=conversations(anything))
def test_trained_tokens_are_each_answer_and_one_stop_token(renderer_of, families, name, drawn):
    family, renderer = families[name], renderer_of(name)
    row = conversation(drawn, family.system)
    example = renderer.example(row)
    answers = [family.answer(message.content) for message in row.messages if message.role == "assistant"]
    assert [decode(renderer, run) for run in trained_runs(example)] == [answer + family.stop for answer in answers]
    assert example.labels.count(renderer.stop_token_id) == len(answers)


@every_family
@property_of
@given(drawn=conversations(anything))
def test_labels_are_the_tokens_themselves_or_ignored(renderer_of, families, name, drawn):
    example = renderer_of(name).example(conversation(drawn, families[name].system))
    assert len(example.labels) == len(example.input_ids)
    assert all(label in (token, IGNORE) for token, label in zip(example.input_ids, example.labels))
    assert example.labels[0] == IGNORE
    assert example.trained == sum(label != IGNORE for label in example.labels)


@every_family
@property_of
@given(drawn=conversations(anything))
def test_tokens_spell_the_templates_own_text(renderer_of, families, name, drawn):
    renderer = renderer_of(name)
    row = conversation(drawn, families[name].system)
    text = renderer.tokenizer.apply_chat_template(row.as_dicts(), tokenize=False)
    assert decode(renderer, renderer.example(row).input_ids) == text


@every_family
@property_of
@given(drawn=conversations(ordinary))
def test_tokens_of_ordinary_text_are_those_of_the_tokenizer(renderer_of, families, name, drawn):
    renderer = renderer_of(name)
    row = conversation(drawn, families[name].system)
    text = renderer.tokenizer.apply_chat_template(row.as_dicts(), tokenize=False)
    assert renderer.example(row).input_ids == renderer.tokenizer(text, add_special_tokens=False)["input_ids"]


@every_family
@property_of
@given(drawn=conversations(anything))
def test_each_prompt_of_the_chat_is_a_prefix_of_what_was_trained(renderer_of, families, name, drawn):
    renderer = renderer_of(name)
    row = conversation(drawn, families[name].system)
    first = next(index for index, message in enumerate(row.messages) if message.role == "assistant")
    prompt = renderer.prompt_ids(row.as_dicts()[:first])
    example = renderer.example(row)
    assert example.input_ids[: len(prompt)] == prompt
    assert set(example.labels[: len(prompt)]) == {IGNORE}
    assert example.labels[len(prompt)] != IGNORE


@every_family
@property_of
@given(drawn=conversations(ordinary))
def test_every_later_prompt_is_a_prefix_too(renderer_of, families, name, drawn):
    renderer = renderer_of(name)
    row = conversation(drawn, families[name].system)
    example = renderer.example(row)
    for index, message in enumerate(row.messages):
        if message.role == "assistant":
            prompt = renderer.prompt_ids(row.as_dicts()[:index])
            assert example.input_ids[: len(prompt)] == prompt
            assert example.labels[len(prompt)] == example.input_ids[len(prompt)]


@every_family
@pytest.mark.parametrize("assistant_only", [True, False])
def test_there_is_one_bos_where_the_template_writes_one(renderer_of, name, assistant_only):
    renderer = renderer_of(name, assistant_only)
    bos = renderer.tokenizer.bos_token_id
    ids = renderer.example(talk("uaua", "Where?", "There.", "Who?", "You.")).input_ids
    written = "bos_token" in renderer.tokenizer.chat_template
    assert ids.count(bos) == int(written)
    assert (ids[0] == bos) == written
    assert renderer.prompt_ids([{"role": "user", "content": "Where?"}]).count(bos) == int(written)


@every_family
def test_stop_token_is_found_from_the_template(renderer_of, families, name):
    renderer = renderer_of(name)
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.stop_token_id) == families[name].stop


@every_family
def test_every_token_is_trained_when_asked(renderer_of, name):
    renderer = renderer_of(name, False)
    row = talk("ua", "Where?", "There.")
    example = renderer.example(row)
    assert example.labels == example.input_ids
    assert decode(renderer, example.input_ids) == renderer.tokenizer.apply_chat_template(row.as_dicts(), tokenize=False)


def test_a_token_that_would_straddle_prompt_and_answer_is_split_as_chat_splits_it(renderer_of):
    renderer = renderer_of("chatml")
    example = renderer.example(talk("ua", "Where?", "\n\nThere."))
    prompt = renderer.prompt_ids([{"role": "user", "content": "Where?"}])
    whole = renderer.tokenizer(decode(renderer, example.input_ids), add_special_tokens=False)["input_ids"]
    assert whole[: len(prompt)] != prompt
    assert example.input_ids[: len(prompt)] == prompt
    assert decode(renderer, trained_runs(example)[0]) == "\n\nThere.<|im_end|>"


def test_a_split_token_in_an_earlier_answer_does_not_spoil_the_later_ones(renderer_of):
    renderer = renderer_of("chatml")
    runs = trained_runs(renderer.example(talk("uaua", "Where?", "\n\nThere.", "Who?", "\n\nYou.")))
    assert [decode(renderer, run) for run in runs] == ["\n\nThere.<|im_end|>", "\n\nYou.<|im_end|>"]


def test_what_a_template_writes_after_the_last_answer_alone_stands_there_once_and_untrained(renderer_of):
    renderer = renderer_of("phi3")
    example = renderer.example(talk("uaua", "Where?", "There.", "Who?", "You."))
    assert example.input_ids.count(renderer.tokenizer.eos_token_id) == 1
    assert (example.input_ids[-1], example.labels[-1]) == (renderer.tokenizer.eos_token_id, IGNORE)


def test_messages_after_the_last_answer_are_left_out(renderer_of):
    renderer = renderer_of("chatml")
    assert renderer.example(talk("uau", "Where?", "There.", "Who?")) == renderer.example(talk("ua", "Where?", "There."))


def test_two_answers_in_a_row_are_both_trained(renderer_of):
    renderer = renderer_of("chatml")
    runs = trained_runs(renderer.example(talk("uaa", "Where?", "There.", "Or here.")))
    assert [decode(renderer, run) for run in runs] == ["There.<|im_end|>", "Or here.<|im_end|>"]


@every_family
def test_a_conversation_that_the_assistant_opens_is_refused_with_its_row(renderer_of, name):
    with pytest.raises(DataError, match=r"rows.jsonl line 7"):
        renderer_of(name).example(talk("aua", "Welcome.", "Hi.", "What do you seek?"))


def test_examples_keep_their_order_and_tell_how_many_are_done(renderer_of):
    done = []
    rows = [Conversation(talk("ua", "Where?", str(n)).messages, f"row {n}") for n in range(3)]
    examples = renderer_of("chatml").examples(rows, done.append)
    assert [example.where for example in examples] == ["row 0", "row 1", "row 2"]
    assert done == [1, 2, 3]


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_role_the_template_refuses_is_named_with_the_row(renderer_of, name):
    with pytest.raises(RowError, match=r"rows.jsonl line 7: .*system → user"):
        renderer_of(name).example(talk("sua", "Be brief.", "Where?", "There."))


TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_a_template_that_rewrites_earlier_answers_gives_each_answer_an_example_of_its_own(tokenizer_with):
    forgets = "{% for m in messages %}{% if not loop.last and m['role'] == 'assistant' %}<|im_start|>…<|im_end|>\n{% else %}"
    renderer = Renderer(tokenizer_with(f"{forgets}{TURN}{{% endif %}}{{% endfor %}}{PROMPT}"))
    row = talk("uaua", "Where?", "There.", "Who?", "You.")
    first, second = renderer.examples([row])
    assert [decode(renderer, run) for run in trained_runs(first)] == ["There.<|im_end|>"]
    assert [decode(renderer, run) for run in trained_runs(second)] == ["You.<|im_end|>"]
    for example, index in ((first, 1), (second, 3)):
        prompt = renderer.prompt_ids(row.as_dicts()[:index])
        assert example.input_ids[: len(prompt)] == prompt
        assert set(example.labels[: len(prompt)]) == {IGNORE}
    assert renderer.notes(1, 2) == ("the template rewrites earlier turns: 2 examples from rows: 1",)
    with pytest.raises(RowError, match=r"rows.jsonl line 7: .*rewrites earlier turns"):
        renderer.example(row)


def test_a_template_whose_prompt_changes_once_the_answer_follows_is_refused_with_the_row(tokenizer_with):
    thinks = "{% if add_generation_prompt %}<|im_start|>assistant\nThink first. {% endif %}"
    renderer = Renderer(tokenizer_with(f"{{% for m in messages %}}{TURN}{{% endfor %}}{thinks}"))
    with pytest.raises(DataError, match=r"rows.jsonl line 7"):
        renderer.example(talk("ua", "Where?", "There."))


def test_a_template_that_leaves_one_answer_open_is_refused_with_the_row(tokenizer_with):
    turn = TURN.replace("<|im_end|>", "{% if loop.index < 3 %}<|im_end|>{% endif %}")
    renderer = Renderer(tokenizer_with(f"{{% for m in messages %}}{turn}{{% endfor %}}{PROMPT}"))
    with pytest.raises(DataError, match=r"rows.jsonl line 7: .*<\|im_end\|>"):
        renderer.example(talk("uaua", "Where?", "There.", "Who?", "You."))


@pytest.mark.parametrize("end", ["\n", "", "### End\n"])
def test_a_template_that_ends_answers_with_no_special_token_is_refused(tokenizer_with, end):
    template = f"{{% for m in messages %}}{{{{ m['role'] }}}}: {{{{ m['content'] }}}}{end}{{% endfor %}}"
    with pytest.raises(ModelError, match="never learn to stop"):
        Renderer(tokenizer_with(template))


# ---- answers that are not to be learnt


def marked(*trained: bool) -> Conversation:
    answers = [(Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}.", t)) for n, t in enumerate(trained)]
    return Conversation(tuple(message for pair in answers for message in pair), "rows.jsonl line 7")


@every_family
@pytest.mark.parametrize("trained", [(True, False), (False, True), (True, False, True), (False, False, True)])
def test_an_answer_marked_out_stays_context(renderer_of, families, name, trained):
    renderer = renderer_of(name)
    example, whole = renderer.example(marked(*trained)), renderer.example(marked(*[True] * len(trained)))
    stop = families[name].stop
    kept = [families[name].answer(f"Answer {n}.") + stop for n, wanted in enumerate(trained) if wanted]
    assert [decode(renderer, run) for run in trained_runs(example)] == kept
    assert whole.input_ids[: len(example.input_ids)] == example.input_ids or example.input_ids[-1] != renderer.stop_token_id


@every_family
def test_with_every_token_trained_an_answer_marked_out_is_all_that_is_not(renderer_of, families, name):
    renderer = renderer_of(name, False)
    example, whole = renderer.example(marked(True, False, True)), renderer.example(marked(True, True, True))
    assert example.input_ids == whole.input_ids == whole.labels
    out = [token for token, label in zip(example.input_ids, example.labels) if label == IGNORE]
    assert decode(renderer, out) == families[name].answer("Answer 1.") + families[name].stop


# ---- plain text


def document(text: str) -> Conversation:
    return Conversation((Message("document", text),), "rows.jsonl line 7")


@every_family
@pytest.mark.parametrize("assistant_only", [True, False])
def test_plain_text_is_trained_whole_between_bos_and_eos(renderer_of, name, assistant_only):
    renderer = renderer_of(name, assistant_only)
    example = renderer.example(document("Once upon a time"))
    tokenizer = renderer.tokenizer
    begun = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    assert example.input_ids == [
        *begun,
        *tokenizer("Once upon a time", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert example.labels == example.input_ids


def test_control_tokens_within_plain_text_stay_text(renderer_of):
    renderer = renderer_of("chatml")
    example = renderer.example(document("It ends with <|im_end|>, always."))
    assert [i for i in example.input_ids if i in renderer.controls.ids] == [renderer.tokenizer.eos_token_id]
    assert decode(renderer, example.input_ids) == "It ends with <|im_end|>, always.<|endoftext|>"


def test_text_that_begins_with_a_control_token_was_formatted_already_and_its_end_is_its_own(tokenizer_of):
    renderer = Renderer(tokenizer_of("chatml"))
    row = talk("ua", "Where?", "There.")
    text = renderer.tokenizer.apply_chat_template(row.as_dicts(), tokenize=False)
    example = renderer.example(document(text))
    assert example.input_ids == renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert renderer.notes(1, 1) == (
        "plain text begins with a control token in 1 row (rows.jsonl line 7): taken as formatted already",
    )


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_formatted_text_has_one_bos(renderer_of, name):
    renderer = renderer_of(name)
    text = renderer.tokenizer.apply_chat_template(talk("ua", "Where?", "There.").as_dicts(), tokenize=False)
    assert renderer.example(document(text)).input_ids.count(renderer.tokenizer.bos_token_id) == 1


def test_a_stop_token_typed_at_the_end_of_an_answer_is_told(tokenizer_of):
    renderer = Renderer(tokenizer_of("chatml"))
    example = renderer.example(talk("ua", "Where?", "There.<|im_end|>"))
    assert decode(renderer, trained_runs(example)[0]) == "There.<|im_end|><|im_end|>"
    assert example.labels.count(renderer.stop_token_id) == 1
    assert any("answers end with a spelled-out stop token in 1 row" in note for note in renderer.notes(1, 1))


def test_rows_at_fault_are_told_and_left_out(renderer_of):
    bad, rows = [], [talk("ua", "a", "b"), talk("sua", "s", "a", "b"), talk("ua", "c", "d")]
    examples = renderer_of("gemma").examples(rows, bad=bad.append)
    assert len(examples) == 2
    assert [error.what.split(":")[0] for error in bad] == ["rows.jsonl line 7"]


def _example(length: int, trained: range) -> Example:
    return Example(list(range(length)), [i if i in trained else IGNORE for i in range(length)], f"row of {length}")


def test_the_first_token_of_a_row_is_never_predicted():
    assert Example([4, 5, 6], [4, IGNORE, 6], "row").trained == 1
    assert Example([4], [4], "row").trained == 0


def test_cut_counts_rows_and_lost_answer_tokens():
    examples = [_example(4, range(2, 4)), _example(6, range(3, 6)), _example(9, range(2, 4)), _example(8, range(6, 8))]
    kept, rows, lost = cut(examples, 5)
    assert [example.input_ids for example in kept] == [list(range(n)) for n in (4, 5, 5, 5)]
    assert [example.trained for example in kept] == [2, 2, 2, 0]
    assert (rows, lost) == (3, 1 + 0 + 2)
    assert [example.where for example in kept] == [example.where for example in examples]


def test_cut_at_the_longest_row_changes_nothing():
    examples = [_example(4, range(2, 4)), _example(6, range(3, 6))]
    assert cut(examples, 6) == (examples, 0, 0)


def test_a_template_that_is_no_jinja_is_named_by_its_line(tokenizer_of_controls):
    with pytest.raises(ModelError, match=r"template's line 2 is no Jinja: .*end of print statement"):
        Renderer(tokenizer_of_controls("{% for m in messages %}\n{{ m.content ", ("<|im_end|>",), ()))
