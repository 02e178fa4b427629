"""Proves what a talk is to its user: commands, what stays of it, what reaches the terminal, and that nothing typed ends it."""

import io
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from transformers import AutoTokenizer, LlamaForCausalLM

from tunesmith.cli.chat_answer import CONTEXT, INTERRUPTED, MAX_NEW_TOKENS, STOP_TOKEN
from tunesmith.cli.chat_drawing import write
from tunesmith.cli.chat_editor import Editor
from tunesmith.cli.chat_history import KEPT, open_history
from tunesmith.cli.chat_model import Partner, find_partner, open_partner
from tunesmith.cli.chat_session import BASE, TUNED, Asked, Chat, Quit, Told
from tunesmith.cli.chat_text import Thoughts, shown
from tunesmith.cli.main import main
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.generate.engine import Sampling
from tunesmith.recipe import Recipe

SAYS = "\x1b[31mRed\x9b\u202e wins"
"""What the speaking model answers to everything: a colour code, a C1 control and a bidi override in it."""
TOLD = "\\x1b[31mRed\\x9b\\u202e wins"


def speaking_model(template: Path, folder: Path, text: str, *, forever: bool = False) -> Path:
    """The tiny model, with weights that make it answer ``text``, over and over or once: each token calls the next one."""
    shutil.copytree(template, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer("\n")["input_ids"][-1], *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    if forever:
        ids[-1] = ids[1]
    assert len(set(ids[:-1])) == len(ids) - 1, "a token that stands twice would be followed by two"
    model = LlamaForCausalLM.from_pretrained(folder)
    model.config.max_position_embeddings = 256 if not forever else 65536
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-4)
            layer.mlp.down_proj.weight.mul_(1e-4)
        embedding, head = model.get_input_embeddings().weight, model.lm_head.weight.zero_()
        for token, following in itertools.pairwise(ids):
            head[following] += embedding[token] / embedding[token].norm()
    model.save_pretrained(folder)
    if forever:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 65536}))
    return folder


@pytest.fixture(scope="module")
def base_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_model(tiny_model_folder, tmp_path_factory.mktemp("speaking") / "model", SAYS)


@pytest.fixture(scope="module")
def adapter_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What peft alone saves: no recipe, no tokenizer."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(base_folder)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(base_folder: Path) -> Partner:
    return open_partner(find_partner(str(base_folder), {}), lambda line: None)


def test_a_model_alone_is_loaded_as_it_is_stored_where_memory_allows(
    base: Partner, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an adapter changed, if it was merged into the model, can be less than the rounding to 4 bits."""

    def in_4_bits(partner: Partner) -> bool:
        return any(isinstance(module, Linear4bit) for module in partner.session.model.modules())

    told: list[str] = []
    assert not in_4_bits(base)
    assert in_4_bits(open_partner(find_partner(str(base_folder), {"load_in_4bit": True}), told.append))
    monkeypatch.setattr("tunesmith.open_run.available_bytes", lambda device: 10_000)
    assert not any("In 4 bits" in line for line in told)
    assert in_4_bits(open_partner(find_partner(str(base_folder), {}), told.append))
    assert any("In 4 bits" in line for line in told)


def test_a_run_that_is_not_there_is_told_at_once_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine-1").mkdir(parents=True)
    (tmp_path / "runs" / "mine-1" / "run.yaml").write_text("")
    with pytest.raises(RunError, match=r"There is no run .*mine-2. There are: .*mine-1"):
        find_partner(str(tmp_path / "runs" / "mine-2"), {})


@pytest.mark.parametrize(("name", "run"), [("mine-2", True), ("smollm2-135m", False), ("gpt2", False)])
def test_a_name_like_that_of_a_run_is_taken_for_one_unless_a_model_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, run: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--gpt2"
    (cached / "snapshots" / "1").mkdir(parents=True)
    (cached / "snapshots" / "1" / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    for near in ("mine-1", "smollm2-135m-1", "gpt2-yoda-1"):
        (tmp_path / "runs" / near).mkdir(parents=True)
        (tmp_path / "runs" / near / "run.yaml").write_text("")
    if run:
        with pytest.raises(RunError, match=rf"There is no run {name}"):
            find_partner(name, {})
    else:
        assert find_partner(name, {}) == Recipe(model_name_or_path=name)


@pytest.fixture(scope="module")
def tuned(adapter_folder: Path) -> Partner:
    return open_partner(find_partner(str(adapter_folder), {}), lambda line: None)


@pytest.fixture
def chat(base: Partner) -> Chat:
    return Chat(base.session, adapter=False)


@pytest.fixture
def pair(tuned: Partner) -> Chat:
    return Chat(tuned.session, Sampling(max_new_tokens=12))


def answered(chat: Chat, line: str, tokens: int | None = None) -> Asked:
    """Say a line and take the answer, or the first so many tokens of it, after which Ctrl-C is pressed."""
    asked = chat.take(line)
    assert isinstance(asked, Asked)
    pieces = asked.pieces()
    for _ in pieces if tokens is None else range(tokens):
        if tokens is not None:
            next(pieces)
    pieces.close()
    chat.keep(asked)
    return asked


def told(chat: Chat, line: str) -> str:
    reply = chat.take(line)
    assert isinstance(reply, Told)
    return reply.text


# ---- the talk


def test_the_model_is_asked_the_whole_talk_and_its_answers_stay(chat: Chat) -> None:
    first = answered(chat, "The wind is cold.").answers[BASE]
    assert (first.text, first.stop) == (SAYS, STOP_TOKEN)
    second = answered(chat, "  And the camp?\n").answers[BASE]
    said = [("user", "The wind is cold."), ("assistant", SAYS), ("user", "And the camp?")]
    assert second.messages == [{"role": role, "content": content} for role, content in said]
    assert second.prompt == chat.session.renderer.prompt_ids(second.messages)
    assert [turn.question for turn in chat.turns] == ["The wind is cold.", "And the camp?"]


def test_the_adapter_is_switched_off_and_on_again(pair: Chat) -> None:
    tuned_says = answered(pair, "The wind is cold.").answers[TUNED].text
    told(pair, "/new")
    assert "base" in told(pair, "/base")
    assert answered(pair, "The wind is cold.").answers[BASE].text == SAYS[: len(pair.turns[0].answer)] != tuned_says
    told(pair, "/new")
    told(pair, "/base")
    assert answered(pair, "The wind is cold.").answers[TUNED].text == tuned_says


def test_both_answer_the_same_messages_and_the_tuned_answer_stays(pair: Chat) -> None:
    alone = answered(pair, "The wind is cold.").answers[TUNED].text
    told(pair, "/new")
    told(pair, "/both")
    asked = answered(pair, "The wind is cold.")
    assert list(asked.answers) == [TUNED, BASE]
    assert asked.answers[BASE].text != asked.answers[TUNED].text == alone == pair.turns[0].answer
    assert asked.answers[BASE].messages == asked.answers[TUNED].messages
    told(pair, "/both")
    assert list(answered(pair, "And?").answers) == [TUNED]


def test_a_base_model_alone_has_no_adapter_to_switch(chat: Chat) -> None:
    for command in ("/base", "/both"):
        with pytest.raises(RecipeError, match="base model alone"):
            chat.take(command)


def test_retry_answers_the_last_message_anew_from_the_talk_before_it(pair: Chat) -> None:
    first = answered(pair, "The wind is cold.")
    told(pair, "/set temperature=2, seed=3")
    again = answered(pair, "/retry")
    assert again.answers[TUNED].messages == first.answers[TUNED].messages
    assert [turn.answer for turn in pair.turns] == [again.answers[TUNED].text] != [first.answers[TUNED].text]


def test_undo_takes_turns_back_until_there_are_none(chat: Chat) -> None:
    for line in ("One.", "Two."):
        answered(chat, line)
    assert "Two." in told(chat, "/undo")
    assert [turn.question for turn in chat.turns] == ["One."]
    told(chat, "/undo")
    for command in ("/undo", "/retry"):
        with pytest.raises(DataError, match="the talk is empty"):
            chat.take(command)


def test_the_system_prompt_comes_first_and_can_be_changed_or_left_out(chat: Chat) -> None:
    told(chat, "/system You are short.\nVery.")
    messages = answered(chat, "Hi.").answers[BASE].messages
    assert messages[0] == {"role": "system", "content": "You are short.\nVery."}
    assert "You are short." in told(chat, "/system")
    told(chat, "/system none")
    assert answered(chat, "Hi.").answers[BASE].messages[0]["role"] == "user"


def test_settings_are_shown_and_changed_together_or_not_at_all(chat: Chat) -> None:
    assert "temperature 0.7, top_p 0.9" in told(chat, "/set temperature=0.7 top-p=0.9")
    assert chat.sampling == Sampling(512, 0.7, 0.9)
    for line, says in {
        "/set top_k=5 temperatur=1": "did you mean temperature",
        "/set top_k=5 temperature=hot": "not a number",
        "/set top_k=1.5": "not a whole number",
        "/set top_k=5 temperature=-1": "temperature",
        "/set temperature=nan": "temperature",
        "/set top_k": "not a whole number",
    }.items():
        with pytest.raises(RecipeError, match=says):
            chat.take(line)
    assert chat.sampling == Sampling(512, 0.7, 0.9)
    told(chat, "/set seed 4")
    assert chat.sampling.seed == 4
    told(chat, "/set seed=none")
    assert chat.sampling.seed is None


@pytest.mark.parametrize(("typed", "near"), [("/bas", "base"), ("/save_as x", "save"), ("/Help", "help")])
def test_an_unknown_command_names_the_nearest(chat: Chat, typed: str, near: str) -> None:
    with pytest.raises(RecipeError, match=rf"did you mean {near}\?"):
        chat.take(typed)


def test_what_begins_with_a_slash_can_be_said(chat: Chat) -> None:
    with pytest.raises(RecipeError, match=r"no command /usr/bin/env.*begin with //"):
        chat.take("/usr/bin/env fails")
    assert answered(chat, "//usr/bin/env fails").question == "/usr/bin/env fails"


def test_a_command_that_takes_nothing_says_so_rather_than_ignore_it(chat: Chat) -> None:
    answered(chat, "One.")
    with pytest.raises(RecipeError, match="takes nothing after it"):
        chat.take("/undo 2")
    assert len(chat.turns) == 1


def test_help_names_every_command_and_quit_quits(chat: Chat) -> None:
    page = told(chat, "/help")
    for name in ("base", "both", "retry", "undo", "system TEXT", "set NAME=VALUE", "save FILE.jsonl", "quit"):
        assert f"/{name}" in page
    assert chat.take("/quit") == chat.take("/exit") == Quit()


@pytest.mark.parametrize("text", ["", " \n ", "/", "/ "])
def test_an_empty_message_is_not_asked(chat: Chat, text: str) -> None:
    with pytest.raises((DataError, RecipeError)):
        chat.take(text)
    assert chat.turns == ()


def test_text_that_is_no_unicode_is_refused(chat: Chat) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        chat.take("caf\udce9")


# ---- answers that are stopped or cut


def test_what_came_of_a_stopped_answer_stays_in_the_talk(chat: Chat) -> None:
    asked = answered(chat, "The wind is cold.", tokens=4)
    answer = asked.answers[BASE]
    assert (answer.stop, answer.tokens) == (INTERRUPTED, 4)
    assert SAYS.startswith(answer.text)
    assert [(turn.answer, turn.whole) for turn in chat.turns] == [(answer.text, False)]
    assert answered(chat, "/retry").answers[BASE].text == SAYS
    assert [turn.whole for turn in chat.turns] == [True]


def test_an_answer_stopped_before_its_first_word_leaves_the_talk_as_it_was(chat: Chat) -> None:
    answered(chat, "One.")
    before = chat.turns
    answered(chat, "Two.", tokens=0)
    assert chat.turns == before
    answered(chat, "/retry", tokens=0)
    assert chat.turns == before


def test_an_answer_ends_at_max_new_tokens_and_says_how_to_get_all_of_it(chat: Chat) -> None:
    chat.sampling = Sampling(max_new_tokens=3)
    asked = chat.take("The wind is cold.")
    assert isinstance(asked, Asked)
    list(asked.pieces())
    assert "max_new_tokens=6" in chat.keep(asked)
    assert asked.answers[BASE].stop == MAX_NEW_TOKENS
    assert not chat.turns[0].whole


def asked_near_the_end(chat: Chat) -> Asked:
    """A question after which the model sees a few tokens more, answered."""
    length = len(chat.session.renderer.prompt_ids([{"role": "user", "content": "a " * 50}]))
    asked = chat.take("a " * (50 + 256 - length - 3))
    assert isinstance(asked, Asked)
    list(asked.pieces())
    return asked


def test_no_longer_answer_is_advised_than_there_is_room_for(chat: Chat) -> None:
    chat.sampling = Sampling(max_new_tokens=3)
    asked = asked_near_the_end(chat)
    room = 256 - asked.answers[BASE].prompt_tokens
    assert 3 < room < 6
    assert f"/set max_new_tokens={room} and /retry" in chat.keep(asked)


def test_an_answer_ends_where_the_model_sees_no_further_and_then_nothing_more_is_asked(chat: Chat) -> None:
    chat.sampling = Sampling(max_new_tokens=10_000)
    asked = asked_near_the_end(chat)
    assert "all 256 tokens" in chat.keep(asked)
    answer = asked.answers[BASE]
    assert (answer.stop, answer.prompt_tokens + answer.tokens) == (CONTEXT, 256)
    before = chat.turns
    with pytest.raises(DataError, match=r"this model sees 256.*/undo.*/new"):
        chat.take("And?")
    assert chat.turns == before


def test_a_model_that_is_made_to_think_answers_from_within_the_thought(base: Partner) -> None:
    renderer = base.session.renderer
    before = renderer.tokenizer.chat_template
    renderer.tokenizer.chat_template = before.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    try:
        asked = answered(Chat(base.session, adapter=False), "Hi.")
        assert asked.answers[BASE].text == f"<think>\n{SAYS}"
        nothing = Chat(base.session, adapter=False)
        answered(nothing, "Hi.", tokens=0)
        assert nothing.turns == ()
    finally:
        renderer.tokenizer.chat_template = before


# ---- saving


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_saved_talk_is_a_row_that_preview_reads(
    chat: Chat, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my talks.jsonl"
    told(chat, "/system Be short.")
    answered(chat, "The wind is cold.")
    answered(chat, "Stop in the middle.", tokens=2)
    assert "2 turns" in told(chat, f"/save {path}")
    told(chat, "/new")
    answered(chat, "Grüße, 你好")
    told(chat, f"/save {path}")
    first, second = rows(path)
    assert [m["role"] for m in first["messages"]] == ["system", *["user", "assistant"] * 2]
    assert [m.get("train") for m in first["messages"]] == [None, None, None, None, False]
    assert second["messages"][1] == {"role": "user", "content": "Grüße, 你好"}
    capsys.readouterr()
    assert main(["preview", str(base_folder), str(path), "--json"]) == 0
    assert '"Grüße' not in capsys.readouterr().err


def test_rows_are_appended_whatever_the_file_ends_with(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text('{"messages": []}')
    answered(chat, "Hi.")
    told(chat, f"/save {path}")
    assert "its beginning" in told(chat, f"/save {path}")
    assert len(rows(path)) == 3


@pytest.mark.parametrize("content", ['{"prompt": "a", "completion": "b"}\n', "notes\n", "[1]\n"])
def test_a_file_of_other_rows_is_left_as_it_is(chat: Chat, tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    answered(chat, "Hi.")
    with pytest.raises(RunError, match="nothing was written"):
        chat.take(f"/save {path}")
    assert path.read_text() == content


def test_a_talk_that_teaches_nothing_is_not_saved(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    for lines in ([], ["Hi."]):
        for line in lines:
            answered(chat, line, tokens=2)
        with pytest.raises(DataError, match="nothing to save"):
            chat.take(f"/save {path}")
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "talks.json", "none/talks.jsonl", "."])
def test_a_place_that_cannot_be_written_is_told(chat: Chat, tmp_path: Path, name: str) -> None:
    answered(chat, "Hi.")
    with pytest.raises((RunError, RecipeError)):
        chat.take(f"/save {tmp_path / name}" if name else "/save")


# ---- what reaches the terminal


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_shown(text: str) -> None:
    import unicodedata

    kept = {"\n", "\t", "\u200c", "\u200d"}
    assert all(c in kept or unicodedata.category(c)[0] != "C" for c in shown(text))


def test_what_people_write_is_shown_as_it_is() -> None:
    text = "C'est bien\u00a0! 全角\u3000空白 👩\u200d💻 नमस्ते\n\tif x:"
    assert shown(text) == text


@given(st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", "a", "<", "</", "\n"]), max_size=12), st.booleans())
def test_thoughts_are_told_apart_wherever_the_pieces_end(pieces: list[str], inside: bool) -> None:
    def told_apart(parts: list[str]) -> list[tuple[str, bool]]:
        thoughts = Thoughts(inside)
        return [(c, dim) for part in parts for text, dim in thoughts.add(part) for c in text] + [
            (c, dim) for text, dim in thoughts.close() for c in text
        ]

    text = "".join(pieces)
    assert told_apart(pieces) == told_apart([text]) == told_apart(list(text))
    assert "".join(c for c, _ in told_apart(pieces)) == text


def test_a_thought_and_its_tags_are_dimmed_and_nothing_else() -> None:
    thoughts = Thoughts()
    assert list(thoughts.add("a<think>b</think>c")) == [("a", False), ("<think>", True), ("b</think>", True), ("c", False)]


# ---- one question, and pipes


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_one_question_of_a_base_model(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(base_folder), "--prompt", "/help", "--system", "Be short."]) == 0
    assert capsys.readouterr() == (f"{TOLD}\n", "")


def test_an_answer_to_one_question_that_is_cut_says_so(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(base_folder), "--prompt", "hello", "--max-new-tokens", "2"]) == 0
    assert "cut after 2 tokens: --max-new-tokens 4" in capsys.readouterr().err


def test_of_two_answers_that_are_cut_it_is_said_whose_they_are(adapter_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(adapter_folder), "--both", "--prompt", "hello", "--max-new-tokens", "1"]) == 0
    said = capsys.readouterr().err
    assert f"{TUNED}: cut after 1 tokens" in said
    assert f"{BASE}: cut after 1 tokens" in said


def test_lines_through_a_pipe_are_one_talk_with_an_object_for_each(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, b"The wind.\n\n/bas\n/base\nThe camp.\n")
    assert main(["chat", str(adapter_folder), "--json", "--both", "--max-new-tokens", "4"]) == 2
    printed = capsys.readouterr()
    assert printed.out.isascii()
    first, wrong, second = map(json.loads, printed.out.splitlines())
    assert first["messages"] == [{"role": "user", "content": "The wind."}]
    assert (first["base"]["stop"], first["base"]["tokens"]) == (MAX_NEW_TOKENS, 4)
    assert first["answer"] != first["base"]["answer"] == SAYS[: len(first["base"]["answer"])]
    assert first["seconds"] > 0
    assert "did you mean base" in wrong["error"]
    assert [m["content"] for m in second["messages"]] == ["The wind.", first["answer"], "The camp."]


def test_all_of_standard_input_as_one_question(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "Zwei\nZeilen – ü\n".encode())
    assert main(["chat", str(base_folder), "--prompt", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"][0]["content"] == "Zwei\nZeilen – ü\n"
    piped(monkeypatch, b"caf\xe9")
    assert main(["chat", str(base_folder), "--prompt", "-"]) == 2
    assert "byte 4 is 0xe9" in capsys.readouterr().err


def test_two_answers_on_a_pipe_are_labelled(pair: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    told(pair, "/both")
    asked = pair.take("Hi.")
    assert isinstance(asked, Asked)
    write(asked)
    out = capsys.readouterr().out
    assert [line.split(": ")[0] for line in out.splitlines() if ": " in line][:1] == [TUNED]
    assert "\nbase: \\x1b" in out


def test_settings_of_a_base_model_are_refused_for_a_run(adapter_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(adapter_folder), "--prompt", "Hi.", "--dtype", "float32"]) == 2
    assert "--dtype is for base models" in capsys.readouterr().err


def test_a_run_without_an_adapter_yet_is_told_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("{}")
    assert main(["chat", str(tmp_path)]) == 2
    assert f"tunesmith resume {tmp_path}" in capsys.readouterr().err


# ---- typing


def typed(history: Path, keys: str, messages: int) -> list[str]:
    with create_pipe_input() as pipe:
        typing = threading.Thread(target=pipe.send_text, args=(keys,))  # a pipe holds less than a megabyte
        typing.start()
        editor = Editor(history, ["base"], pipe, DummyOutput())
        read = [editor.read("") for _ in range(messages)]
        typing.join()
        return read


def test_several_lines_are_one_message(tmp_path: Path) -> None:
    assert typed(tmp_path / "h", "one\ntwo\x1b\rthree\r", 1) == ["one\ntwo\nthree"]


def test_a_paste_of_a_megabyte_is_one_message_and_sent_whole(tmp_path: Path) -> None:
    text = "".join(f"line {n} \x1b[31m\n" for n in range(70_000))
    begun = time.process_time()
    (message,) = typed(tmp_path / "h", f"See: \x1b[200~{text}\x1b[201~ end\r", 1)
    assert message == f"See: {text} end"
    assert time.process_time() - begun < 20
    assert not list(open_history(tmp_path / "h").load_history_strings())


def test_the_up_arrow_brings_messages_of_earlier_talks(tmp_path: Path) -> None:
    history = tmp_path / "cache" / "history"
    typed(history, "first\r" + "a\nb\r", 2)
    assert history.stat().st_mode & 0o777 == 0o600
    assert typed(history, "\x1b[A\x1b[A\x1b[A\r", 1) == ["first"]


def test_a_history_file_that_others_could_read_is_closed_to_them_and_kept_short(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("".join(f"\n# 2026\n+message {n}\n" for n in range(60_000)))
    path.chmod(0o644)
    kept = list(open_history(path).load_history_strings())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size <= KEPT
    assert kept[0] == "message 59999"
    assert all(re.fullmatch(r"message \d+", message) for message in kept)


def test_a_place_without_room_for_history_does_not_end_a_talk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert typed(tmp_path / "file" / "history", "one\rtwo\r", 2) == ["one", "two"]


# ---- a real terminal


class Shell:
    """A shell on a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.master, terminal = os.openpty()
        # a session leader's first terminal becomes its own, and with it come Ctrl-C and Ctrl-Z
        begin = "import os; os.open(os.ttyname(0), os.O_RDWR); os.execvp('bash', ['bash', '--norc', '--noediting', '-i'])"
        environment = {
            **os.environ, "PS1": "$ ", "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "OMP_NUM_THREADS": "1",
            "TUNESMITH_CACHE": str(folder / "cache"), "COLUMNS": "100", "LINES": "30",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", begin], stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        self.raw, self.seen = b"", 0

    def type(self, keys: str) -> None:
        content = keys.encode()
        while content:
            _, ready, _ = select.select([], [self.master], [], 0)
            if ready:
                content = content[os.write(self.master, content[:1024]) :]
            self._read(0.05 if not ready else 0)

    def see(self, text: str, seconds: float = 60) -> None:
        """Wait until this is on the terminal, below what was waited for last."""
        deadline = time.monotonic() + seconds
        while (found := self.screen().find(text, self.seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.screen()[self.seen :][-2000:]}"
            self._read(1)
        self.seen = found + len(text)

    def screen(self) -> str:
        """All that was written, without the sequences that prompt_toolkit and rich write."""
        return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][0-9A-B]|\x1b[=>78]", "", self.raw.decode(errors="replace"))

    def _read(self, seconds: float) -> None:
        ready, _, _ = select.select([self.master], [], [], seconds)
        if ready:
            self.raw += os.read(self.master, 1 << 16)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


@pytest.mark.skipif(shutil.which("bash") is None, reason="drives the command in bash")
def test_in_a_terminal_nothing_but_the_user_ends_a_talk(shell: Shell, tiny_model_folder: Path, tmp_path: Path) -> None:
    speaking_model(tiny_model_folder, tmp_path / "model", SAYS, forever=True)
    shell.see("$ ")
    shell.type(f"{sys.executable} -m tunesmith.cli.main chat ./model --max-new-tokens 100000\n")
    shell.see(f"Loading {tmp_path / 'model'}")
    shell.see("/help shows the commands")
    shell.see(">")
    shell.type("Hi.\r")
    shell.see(TOLD)  # control characters as text
    shell.type("\x03")
    shell.see("stopped after")
    shell.see(">")
    shell.type("/set max_new_tokens=3\r")
    shell.see("max_new_tokens 3")
    shell.see(">")
    paste = "wind \x1b[2J\n" * 10_000
    shell.type(f"\x1b[200~{paste}\x1b[201~\r")
    shell.see(f"{len(paste):,} characters")
    shell.see("this model sees 65,536")
    shell.see(">")
    shell.type("\x1a")
    shell.see("Stopped")
    shell.see("$ ")
    shell.type("fg\n")
    shell.see("chat ./model")
    shell.see(">")  # until the prompt is back, Enter would arrive as a new line
    shell.type("Go on.\r")
    shell.see("cut at max_new_tokens, 3 tokens")
    shell.see(">")
    shell.type("half a line\x03")
    shell.see("Ctrl-D or /quit ends the talk")
    shell.see(">")
    shell.type("/save talk.jsonl\r")
    shell.see("nothing to save")
    shell.see(">")
    shell.type("\x04")
    shell.see("$ ")
    shell.type("echo left with $?\n")
    shell.see("left with 0")
    for forbidden in (b"\x1b[31mRed", "\x9b".encode(), "\u202e".encode(), b"Traceback"):
        assert forbidden not in shell.raw
    assert (tmp_path / "cache" / "chat_history").stat().st_mode & 0o777 == 0o600
