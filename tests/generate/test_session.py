"""Proves that a streamed answer is the answer, piece by piece in whole characters, and that it stops where an answer ends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tunesmith.data.render import Renderer
from tunesmith.errors import DataError, RecipeError
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.sampling import Sampling
from tunesmith.generate.session import Session
from tunesmith.generate.text_stream import TextStream

ASKED = [{"role": "user", "content": "Where is the camp?"}]


@pytest.fixture(scope="module")
def session(tiny_model_folder: Path, tiny_tokenizer: Any) -> Session:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    return Session(model, Renderer(tiny_tokenizer))


def streamed(tokenizer: Any, ids: list[int]) -> list[str]:
    text = TextStream(tokenizer)
    return [piece for piece in [*(text.add(token) for token in ids), text.close()] if piece]


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=60))
def test_pieces_add_up_to_the_text_and_none_is_half_a_character(tiny_tokenizer: Any, text: str) -> None:
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = streamed(tiny_tokenizer, ids)
    assert "".join(pieces) == tiny_tokenizer.decode(ids, skip_special_tokens=True).strip()
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(0, 299), max_size=40))
def test_bytes_that_are_no_text_add_up_too(tiny_tokenizer: Any, ids: list[int]) -> None:
    assert "".join(streamed(tiny_tokenizer, ids)) == tiny_tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_a_character_of_several_tokens_comes_whole_when_it_is_whole(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer("a🙂b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6, "the emoji should be four tokens"
    text = TextStream(tiny_tokenizer)
    assert [text.add(token) for token in ids] == ["a", "", "", "", "🙂", "b"]


def test_space_is_held_back_until_something_follows(tiny_tokenizer: Any) -> None:
    assert streamed(tiny_tokenizer, tiny_tokenizer(" \n  a \n b \n", add_special_tokens=False)["input_ids"])[-1].endswith("b")
    assert streamed(tiny_tokenizer, tiny_tokenizer(" \n ", add_special_tokens=False)["input_ids"]) == []


@pytest.mark.parametrize("sampling", [Sampling(24), Sampling(24, temperature=1.0, seed=5)], ids=["greedy", "drawn"])
def test_a_stream_is_the_answer(session: Session, sampling: Sampling) -> None:
    answer = session.answer([ASKED], sampling)[0]
    assert "".join(session.stream(ASKED, sampling)) == answer
    assert answer


def test_closing_a_stream_ends_it_and_others_go_on(session: Session) -> None:
    first, second = session.stream(ASKED, Sampling(40)), session.stream(ASKED, Sampling(40))
    head = next(first)
    assert next(second) == head
    first.close()
    assert list(first) == []
    assert head + "".join(second) == session.answer([ASKED], Sampling(40))[0]


def test_a_session_stops_on_every_token_that_ends_something(session: Session) -> None:
    assert set(session.stop_ids) == session.renderer.stop_token_ids
    assert session.stop_ids[0] == session.renderer.stop_token_id


def test_no_questions_have_no_answers(session: Session) -> None:
    assert session.answer([]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": None},
        {"temperature": "1"},
        {"top_k": True},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_setting_out_of_its_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_a_setting_that_there_is_not_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(RecipeError, match=r"'temprature' \(did you mean temperature\?\)"):
        Sampling.of({"temprature": 1.0})
    assert Sampling.of({"temperature": 1, "seed": None}) == Sampling(temperature=1)


def test_an_answer_ends_where_the_model_sees_no_further(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "stop_ids", [])
    room = session.context - len(session.renderer.prompt_ids(ASKED))
    assert len(list(session.tokens(session.renderer.prompt_ids(ASKED), Sampling(400)))) == room
    cut = session.answer([ASKED], Sampling(400), raw=True)[0]
    assert cut == session.answer([ASKED], Sampling(room), raw=True)[0]
    assert "".join(session.stream(ASKED, Sampling(400))) == session.answer([ASKED], Sampling(400))[0]


def test_no_answer_has_more_room_kept_than_the_model_sees(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr("tunesmith.generate.engine.rows_that_fit", lambda model, shape, length: kept.append(length) or 1)
    session.answer([ASKED], Sampling(10_000))
    assert kept == [session.context]


def test_messages_that_leave_no_room_for_an_answer_are_not_asked(session: Session) -> None:
    long = [{"role": "user", "content": "wind " * 400}]
    with pytest.raises(DataError, match="this model sees 256"):
        session.answer([ASKED, long])
    with pytest.raises(DataError, match="this model sees 256"):
        session.stream(long)


def test_what_is_drawn_follows_the_distribution() -> None:
    """Frequencies of 4,000 draws from known odds, within four standard deviations."""
    from tunesmith.generate.sampling import Draw

    odds = torch.tensor([0.5, 0.3, 0.15, 0.05])
    cases: list[tuple[dict[str, Any], list[float]]] = [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    ]
    for settings_, expected in cases:
        draw = Draw(Sampling(**{"temperature": 1.0, "seed": 1, **settings_}))
        drawn = torch.bincount(torch.tensor([draw.token(odds.log()) for _ in range(4000)]), minlength=4) / 4000
        for share, odd in zip(drawn.tolist(), expected):
            assert abs(share - odd) <= 4 * (odd * (1 - odd) / 4000) ** 0.5


def test_a_stop_token_that_comes_first_is_an_empty_answer(session: Session) -> None:
    prompt = session.renderer.prompt_ids(ASKED)
    decoder = Decoder(session.model, range(300), 0)
    key = decoder.add(prompt)
    assert list(decoder.step()) == [key]
    assert not decoder.living
