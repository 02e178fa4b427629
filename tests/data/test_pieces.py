"""Proves that the pieces of an example are its tokens, in order, each with what happens to it in training."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.controls import special_ids
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.pieces import Piece, pieces_of
from tunesmith.data.render import IGNORE, Example, Renderer


def rendered(tokenizer: Any, question: str, answer: str) -> Example:
    return Renderer(tokenizer).example(Conversation((Message("user", question), Message("assistant", answer)), "row 1"))


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30).filter(str.strip)


@given(TEXT, TEXT, st.integers(1, 200))
@settings(deadline=None, max_examples=60)
def test_pieces_are_the_tokens_and_spell_the_row(tiny_tokenizer: Any, question: str, answer: str, max_length: int) -> None:
    example = rendered(tiny_tokenizer, question, answer)
    special = special_ids(tiny_tokenizer)
    pieces = pieces_of(example, tiny_tokenizer, special, max_length)
    assert [i for piece in pieces for i in piece.ids] == example.input_ids
    place = 0
    for piece in pieces:
        for i in range(place, place + len(piece.ids)):
            assert piece.trained == (i > 0 and example.labels[i] != IGNORE)
            assert piece.special == (example.input_ids[i] in special)
            assert piece.cut == (i >= max_length)
        place += len(piece.ids)
    if max_length >= len(example.input_ids):
        assert text(pieces) == tiny_tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False)


def test_a_character_of_several_tokens_is_one_piece(tiny_tokenizer: Any) -> None:
    pieces = pieces_of(rendered(tiny_tokenizer, "🙂 naïve", "日本語"), tiny_tokenizer, special_ids(tiny_tokenizer), 999)
    shown = [piece.text for piece in pieces]
    assert {"日", "本", "語"} <= set(shown)
    assert "�" not in "".join(shown)


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral", "zephyr"])
def test_spaces_are_kept_by_every_family(renderer_of: Any, name: str) -> None:
    renderer = renderer_of(name)
    example = renderer.example(Conversation((Message("user", "Where does it go?"), Message("assistant", "To the sea.")), "row 1"))
    shown = text(pieces_of(example, renderer.tokenizer, special_ids(renderer.tokenizer), 999))
    assert "Where does it go?" in shown
    assert "To the sea." in shown


def test_of_a_long_row_the_beginning_the_cut_and_the_end_are_shown(tiny_tokenizer: Any) -> None:
    example = rendered(tiny_tokenizer, "wind " * 400, "cold " * 300)
    cut = len(example.input_ids) // 3
    pieces = pieces_of(example, tiny_tokenizer, special_ids(tiny_tokenizer), cut, most=80)
    shown = sum(len(piece.ids) for piece in pieces)
    assert shown <= 100
    assert shown + sum(piece.skipped for piece in pieces) == len(example.input_ids)
    assert pieces[0].ids == tuple(example.input_ids[:1])
    assert pieces[-1].ids == tuple(example.input_ids[-1:])
    assert {piece.cut for piece in pieces} == {True, False}
    assert sum(piece.skipped > 0 for piece in pieces) == 2


def test_an_empty_example_has_no_pieces(tiny_tokenizer: Any) -> None:
    assert pieces_of(Example([], [], "row 1"), tiny_tokenizer, set(), 10) == []
