"""Proves that base and tuned are told apart as they are: taught ones better, spoilt ones worse, untouched ones neither."""

import json
import math
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.example import IGNORE
from tunesmith.data.render import Renderer
from tunesmith.generate.compare import as_json, compare, spread
from tunesmith.generate.compare_page import page_of
from tunesmith.generate.engine import Sampling
from tunesmith.generate.session import Session
from tunesmith.generate.suite import general_texts
from tunesmith.judge import Judged, judge

FACTS = [(f"what is the {thing}", f"the {thing} is {how}") for thing, how in zip(
    ("wind", "camp", "bridge", "table", "night", "force", "midnight"), ("cold", "in you", "strong", "wind", "you", "will", "run")
)]  # fmt: skip


def rows(pairs):
    return [
        Conversation((Message("user", asked), Message("assistant", answer)), f"rows.jsonl:{number}")
        for number, (asked, answer) in enumerate(pairs, 1)
    ]


LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def session(tiny_model_folder, tiny_tokenizer):
    """A fresh adapter on the tiny model; B is zero, so it changes nothing yet."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    return Session(get_peft_model(base, LORA).eval(), Renderer(tiny_tokenizer))


@pytest.fixture(scope="module")
def learnt(tiny_model_folder, tiny_tokenizer):
    """The tiny model with an adapter that was taught the facts."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    session = Session(get_peft_model(base, LORA).eval(), Renderer(tiny_tokenizer))
    teach(session.model, adapter(session), session.renderer.examples(rows(FACTS)))
    return session


def adapter(session):
    return [p for name, p in session.model.named_parameters() if "lora_" in name]


def teach(model, parameters, examples, steps=150):
    """Plain gradient steps on all of these examples at once."""
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    padded = [
        pad([torch.tensor(getattr(example, name)) for example in examples], padding_value=value)
        for name, value in (("input_ids", 0), ("labels", IGNORE))
    ]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(steps):
        model(input_ids=padded[0], labels=padded[1]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def spoil(session, size=3.0):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter(session):
            parameter.normal_(0, size)


def compared(session, conversations=None, **options):
    return judge(session, Judged(conversations or rows(FACTS)), lambda event: None, **{"suites": False, **options})


def test_a_model_that_was_taught_the_facts_is_better(learnt):
    found = compared(learnt)
    assert found.verdict.word == "better", found.verdict
    assert [row.after.text for row in found.rows] == [answer for _, answer in FACTS]
    assert all(row.after.right and row.after.stopped and row.after.chrf == 100 for row in found.rows)
    words = {one.name: one.word for one in found.measures}
    assert words["loss on answers"] == words["chrF"] == words["exact match"] == "better"
    assert found.right == (0, len(FACTS))


def test_an_adapter_of_noise_is_worse_and_forgetting_severe(tiny_model_folder, tiny_tokenizer):
    """The base knows the facts and has read some prose."""
    torch.manual_seed(0)
    base, renderer = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32), Renderer(tiny_tokenizer)
    prose = [Conversation((Message("document", text[:120]),), "prose") for text in general_texts()]
    teach(base, base.parameters(), renderer.examples([*rows(FACTS), *prose]), 40)
    spoilt = Session(get_peft_model(base, LORA).eval(), renderer)
    spoil(spoilt)
    found = compared(spoilt)
    assert found.verdict.word == "worse", found.verdict
    assert found.forgetting.word == "severe", found.forgetting
    assert found.right == (len(FACTS), 0)


def test_an_adapter_that_does_nothing_makes_no_difference_and_forgets_nothing(session):
    found = compared(session, suites=True)
    assert (found.verdict.word, found.forgetting.word) == ("no difference", "none")
    assert all(row.before == row.after for row in found.rows)
    assert {one.word for one in (*found.measures, *found.abilities)} <= {"no difference", ""}
    assert [one.name for one in found.abilities] == [
        "facts", "arithmetic", "json", "instructions", "all suites", "loss on general text", "perplexity on general text",
    ]  # fmt: skip


def test_the_loss_is_that_of_the_models_own_forward_over_all_answer_tokens(session):
    spoil(session, 0.1)
    found = compared(session)
    total = tokens = 0.0
    for example in session.renderer.examples(rows(FACTS)):
        with torch.no_grad():
            loss = session.model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
        total, tokens = total + float(loss) * example.trained, tokens + example.trained
    loss, perplexity = found.measures[:2]
    assert loss.after == pytest.approx(total / tokens, rel=1e-4)
    assert perplexity.after == pytest.approx(math.exp(loss.after))


def test_answers_are_those_the_session_gives(session):
    spoil(session, 0.1)
    found = compared(session)
    asked = [[{"role": "user", "content": question}] for question, _ in FACTS]
    longest = max(row.after.tokens for row in found.rows)
    for side, base in (("before", True), ("after", False)):
        answers = session.answer(asked, Sampling(max_new_tokens=longest), base=base)
        for row, answer in zip(found.rows, answers):
            assert answer.startswith(getattr(row, side).text.rstrip("�"))


def test_few_rows_are_too_few_and_nothing_is_claimed(learnt):
    assert compared(learnt, rows(FACTS[:2])).verdict.word == "too few rows"


def test_rows_that_ask_nothing_count_for_the_loss_alone(session):
    documents = [Conversation((Message("document", "the wind is cold in the camp"),), f"text.jsonl:{n}") for n in range(6)]
    found = compared(session, documents)
    assert not found.rows
    assert [one.name for one in found.measures] == ["loss on answers", "perplexity on answers"]
    assert found.notes == ("0 of 6 rows were answered; the loss is that of all 6",)
    assert found.verdict.word == "no difference"


def test_a_row_longer_than_the_model_sees_is_left_out_and_said(session):
    pairs = [*FACTS, ("wind " * 400, "cold")]
    found = compared(session, rows(pairs))
    assert len(found.rows) == len(FACTS)
    assert "1 of 8 rows have no answer this model can be scored on" in found.notes


def test_when_time_is_up_no_more_answers_are_begun_and_that_is_said(session):
    many = rows([(f"what is {n}", "cold") for n in range(20)])
    found = compared(session, many, seconds=0.0)
    assert len(found.rows) == 8
    assert found.measures[0].rows == 20
    assert "8 of 20 rows were answered; the loss is that of all 20" in found.notes


def test_a_loss_that_is_no_number_counts_as_very_bad(session):
    def losses(examples, untuned):
        return [(1.0 if untuned else math.nan, 2) for _ in examples]

    found = compare(session, rows(FACTS), losses, suites=False)
    assert found.measures[0].word == "worse"
    assert found.forgetting.word == "severe"
    json.dumps(as_json(found), allow_nan=False)


@pytest.mark.parametrize(
    ("count", "most", "places"), [(5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (10, 3, [0, 3, 6]), (0, 4, [])]
)
def test_of_many_rows_some_from_everywhere_are_taken(count, most, places):
    assert spread(count, most) == places


def test_the_page_sorts_by_change_escapes_everything_and_fetches_nothing(learnt):
    wicked = "<script>alert(1)</script>&\"'\u202e"
    found = compared(learnt, rows([(wicked, wicked), *FACTS]))
    gains = [row.gain for row in found.by_gain]
    assert gains == sorted(gains)
    assert len(set(gains)) > 1
    page = page_of(found, wicked, {wicked: wicked})
    assert "<script" not in page.replace("&lt;script", "")
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    places = [page.index(f"title='{row.where}'") for row in found.by_gain]
    assert places == sorted(places)
    plain = as_json(found)
    assert [row["where"] for row in plain["rows"]] == [row.where for row in found.by_gain]
    assert json.loads(json.dumps(plain, allow_nan=False))["verdict"]["word"] == found.verdict.word
