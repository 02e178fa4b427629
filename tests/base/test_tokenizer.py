"""Proves that padding never teaches a model not to stop, that no token is invented, and that the template is known."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunesmith.base.catalog import ModelSource, resolve
from tunesmith.base.templates import TEMPLATES
from tunesmith.base.tokenizer import load_tokenizer, make_pad_safe
from tunesmith.errors import ModelError

TEMPLATE = "{% for m in messages %}<user>{{ m['content'] }}</s>{% endfor %}"


def made_of(*specials: str, **roles: str | None) -> Any:
    """A tokenizer with these special tokens and three words."""
    words = [*specials, "one", "two", "three"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="one")), **roles
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_padding_with_eos_is_replaced_by_the_unknown_token() -> None:
    tokenizer = made_of("<s>", "</s>", "<unk>", "<pad>", bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    make_pad_safe(tokenizer)
    assert tokenizer.pad_token == "<unk>"


def test_without_an_unknown_token_a_reserved_one_pads() -> None:
    tokenizer = made_of("<s>", "</s>", "<|pad|>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    make_pad_safe(tokenizer)
    assert tokenizer.pad_token == "<|pad|>"


def test_without_either_a_special_token_the_template_never_uses_pads() -> None:
    tokenizer = made_of("<s>", "</s>", "<user>", "<image>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    make_pad_safe(tokenizer)
    assert tokenizer.pad_token == "<image>"


def test_a_missing_pad_token_is_chosen_the_same_way() -> None:
    tokenizer = made_of("<s>", "</s>", "<unk>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert tokenizer.pad_token is None
    make_pad_safe(tokenizer)
    assert tokenizer.pad_token == "<unk>"


def test_a_pad_token_that_the_template_writes_is_replaced() -> None:
    tokenizer = made_of("</s>", "<user>", "<|pad|>", eos_token="</s>", pad_token="<user>")
    make_pad_safe(tokenizer)
    assert tokenizer.pad_token == "<|pad|>"


def test_a_safe_pad_token_is_left_as_it_is() -> None:
    tokenizer = made_of("</s>", "<unk>", "<mine>", eos_token="</s>", pad_token="<mine>", unk_token="<unk>")
    make_pad_safe(tokenizer)
    assert tokenizer.pad_token == "<mine>"


def test_an_unknown_token_that_is_eos_does_not_pad() -> None:
    tokenizer = made_of("</s>", "<|pad|>", eos_token="</s>", pad_token="</s>", unk_token="</s>")
    make_pad_safe(tokenizer)
    assert tokenizer.pad_token == "<|pad|>"


@pytest.mark.parametrize("specials", [("<s>", "</s>", "<unk>"), ("</s>", "<|endoftext|>")])
def test_the_vocabulary_never_grows(specials: tuple[str, ...]) -> None:
    tokenizer = made_of(*specials, eos_token="</s>", pad_token="</s>")
    before = tokenizer.get_vocab()
    make_pad_safe(tokenizer)
    assert tokenizer.get_vocab() == before
    assert tokenizer.pad_token_id < len(before)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_vocabulary_with_no_token_to_spare_is_refused() -> None:
    tokenizer = made_of("<s>", "</s>", "<user>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    with pytest.raises(ModelError, match="no other token to spare") as caught:
        make_pad_safe(tokenizer)
    assert "pad_token" in caught.value.fix
    assert "<|pad|>" not in tokenizer.get_vocab()


# ---- from a folder


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_folder, tmp_path / "copy")


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), None, "org/tiny")


def test_the_trap_of_the_bundled_model_is_disarmed(tiny_model_folder: Path) -> None:
    from transformers import AutoTokenizer

    as_saved = AutoTokenizer.from_pretrained(tiny_model_folder)
    assert as_saved.pad_token_id == as_saved.eos_token_id, "the tiny model no longer sets the trap"
    safe = load_tokenizer(resolve(str(tiny_model_folder)))
    assert safe.pad_token == "<|endoftext|>"
    assert safe.eos_token == "<|im_end|>"
    assert len(safe) == len(as_saved)


def test_no_chat_template_is_refused_with_the_ones_there_are(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"org/tiny has no chat template") as caught:
        load_tokenizer(source_of(folder))
    assert TEMPLATES
    for name in TEMPLATES:
        assert name in caught.value.fix


def test_a_built_in_template_is_chosen_by_name(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(source_of(folder), "zephyr").chat_template == TEMPLATES["zephyr"]


def test_a_named_template_wins_over_the_models_own(folder: Path) -> None:
    assert load_tokenizer(source_of(folder), "alpaca").chat_template == TEMPLATES["alpaca"]


NAMED = {
    "default": "\n  {{ messages[0]['content'] }} plain <|im_end|>  \n",
    "tool_use": "\n{% set n = tools | length %}{{ n }} {{ messages[0]['content'] }}\n\n",
    "../../elsewhere": "{{ 1 }}",
}


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f", "parameters": {}}}]], ids=["", "tools"])
@pytest.mark.parametrize("names", [NAMED.keys(), ["default"], ["default", "../../elsewhere"]], ids=" ".join)
def test_templates_by_name_become_the_one_that_transformers_would_take(folder: Path, names: Any, tools: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": name, "template": NAMED[name]} for name in names]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(source_of(folder))
    assert isinstance(theirs.chat_template, dict)
    assert isinstance(ours.chat_template, str)
    talk = [{"role": "user", "content": "hello"}]
    said, expected = (t.apply_chat_template(talk, tools=tools, tokenize=False) for t in (ours, theirs))
    assert said == expected


def test_a_template_is_read_from_a_jinja_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my.jinja").write_text("{{ messages[0]['content'] }} ünï <|im_end|>", encoding="utf-8")
    tokenizer = load_tokenizer(source_of(folder), str(tmp_path / "my.jinja"))
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert said == "hello ünï <|im_end|>"


def test_a_template_file_that_is_no_utf_8_is_said_so(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_bytes("{{ bos_token }}«é»".encode("latin-1"))
    with pytest.raises(ModelError, match=r"own\.jinja cannot be read: .*Save it as UTF-8"):
        load_tokenizer(resolve(str(folder)), str(path))


def test_an_unknown_template_names_the_nearest(folder: Path) -> None:
    with pytest.raises(ModelError, match="did you mean llama3") as caught:
        load_tokenizer(source_of(folder), "lama3")
    assert "chatml" in caught.value.fix


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="org/tiny has no tokenizer that can be loaded"):
        load_tokenizer(source_of(folder))


def test_a_tokenizer_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{ not json")
    with pytest.raises(ModelError, match="org/tiny has no tokenizer that can be loaded"):
        load_tokenizer(source_of(folder))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer.json", None, []),
        ("tokenizer.json", "model", {"type": "none"}),
        ("tokenizer.json", "model", {"type": "BPE", "vocab": {}, "merges": ["a"]}),
        ("tokenizer_config.json", "eos_token", 3),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": "a"}}),
    ],
)
def test_a_tokenizer_that_is_damaged_in_any_way_is_refused_in_one_line(
    folder: Path, file: str, key: str | None, value: Any
) -> None:
    told = json.loads((folder / file).read_text()) if key else None
    (folder / file).write_text(json.dumps({**told, key: value} if told else value))
    with pytest.raises(ModelError, match=r"org/tiny has no tokenizer that can be loaded: .") as caught:
        load_tokenizer(source_of(folder))
    assert "\n" not in caught.value.what


def test_a_chat_template_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": 5}))
    with pytest.raises(ModelError, match="The chat template of org/tiny is no text"):
        load_tokenizer(source_of(folder))


def with_template(folder: Path, bos: str, template: str) -> Any:
    """The folder's tokenizer, which begins texts with this BOS, with a template of one's own."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    (folder / "own.jinja").write_text(template)
    made = load_tokenizer(source_of(folder), str(folder / "own.jinja"))
    assert made("a")["input_ids"][0] == made.bos_token_id, "this tokenizer adds no BOS"
    return made


@pytest.mark.parametrize("written", ["{{ bos_token }}", "<s>", "{% set begin = '<s>' %}{{ begin }}", "\n{{ bos_token }}", ""])
def test_a_template_of_ones_own_gets_one_bos_however_it_writes_it(folder: Path, written: str) -> None:
    made = with_template(folder, "<s>", written + TEMPLATES["chatml"])
    said = made.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert said.count("<s>") == 1


@pytest.mark.parametrize("end", ["<|im_end|>", "{{ eos_token }}", "{{ bos_token }}"])
def test_a_bos_that_ends_turns_too_begins_the_text_all_the_same(folder: Path, end: str) -> None:
    made = with_template(folder, "<|im_end|>", "{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}")
    said = made.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert said == "<|im_end|>hello<|im_end|>"


@pytest.mark.parametrize(("written", "begun"), [("{{ bos_token }}", ""), ("", "{{ bos_token }}")])
def test_a_template_that_refuses_a_question_alone_is_taken_by_its_words(folder: Path, written: str, begun: str) -> None:
    template = (
        "{% if messages | length < 2 %}{{ raise_exception('two') }}{% endif %}" + written + "{{ messages[1].content }}<|im_end|>"
    )
    assert with_template(folder, "<s>", template).chat_template == begun + template
