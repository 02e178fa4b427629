"""Proves that a tokenizer is written only in words that llama.cpp understands as they are meant, and refused otherwise."""

import json

import pytest
from tests.export.tiny_bases import byte_level, phi3_tokenizer, sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunesmith.base.gguf_split import SPLITS, TAKEN_WHOLE
from tunesmith.errors import ModelError
from tunesmith.export.gguf_pre_tokenizer import pre_tokenizer_of
from tunesmith.export.gguf_vocabulary import STOPS, add_vocabulary, stop_tokens


class Written(dict):
    """What a GGUFWriter was told, by the method's name without add_."""

    def __getattr__(self, name):
        return lambda *told: self.update({told[0] if len(told) == 2 else name.removeprefix("add_"): told[-1]})


def written(tokenizer, rows=700, stops=(2,)):
    told = Written()
    add_vocabulary(told, tokenizer, rows, stops)
    return told


def changed(made, **model):
    """The same tokenizer with other settings of its BPE."""
    told = json.loads(made.backend_tokenizer.to_str())
    told["model"] |= model
    again = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(told)), **made.special_tokens_map)
    again.chat_template = made.chat_template
    return again


def merges_without(made, piece):
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    left = [merge for merge in merges if "".join(merge) != piece]
    assert len(left) < len(merges)
    return left


@pytest.mark.parametrize("name", SPLITS)
def test_a_pre_tokenizer_is_known_by_what_it_does(name):
    made = byte_level(name, whole=name in TAKEN_WHOLE).backend_tokenizer
    assert pre_tokenizer_of(made) == name


def test_the_tokenizers_librarys_own_splits_are_known_too():
    made = byte_level().backend_tokenizer
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert pre_tokenizer_of(made) == "gpt-2"
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), made.pre_tokenizer])
    assert pre_tokenizer_of(made) == "smollm"


def test_whole_words_count_only_where_merging_does_not_make_them():
    made = byte_level("qwen2")
    assert pre_tokenizer_of(changed(made, ignore_merges=True).backend_tokenizer) == "qwen2"
    apart = changed(made, ignore_merges=True, merges=merges_without(made, "\u0120the"))
    with pytest.raises(ModelError, match="pre-tokenizers"):
        pre_tokenizer_of(apart.backend_tokenizer)


def splits_pairs_of_digits():
    made = byte_level()
    words = pre_tokenizers.Split(Regex(r"\p{N}{1,2}| ?\p{L}+|\S|\s+"), "isolated")
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return made


def puts_a_space_first():
    made = byte_level()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


def splits_words():
    made = sentencepiece(scheme="first")
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    return made


def unigram():
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="a", unk_token="<unk>", chat_template="a")


def with_token(made, **settings):
    made.backend_tokenizer.add_special_tokens([AddedToken("<mask>", normalized=False, **settings)])
    return made


PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
ODD = {
    "splits otherwise": (splits_pairs_of_digits, "pre-tokenizers"),
    "lower case": (lambda: byte_level(normalizer=normalizers.Lowercase()), "pre-tokenizers"),
    "space first": (puts_a_space_first, "pre-tokenizers"),
    "unigram": (unigram, "it is Unigram"),
    "a merge is missing": (
        lambda: changed(made := sentencepiece(), merges=merges_without(made, "\u2581th")),
        "its merges are not",
    ),
    "words are split": (splits_words, "spaces otherwise"),
    "a space where texts begin only": (lambda: sentencepiece(scheme="first", template=PLAIN), "spaces otherwise"),
    "space before a token": (lambda: with_token(byte_level(), lstrip=True), "<mask> swallows"),
    "a token within words": (lambda: with_token(byte_level(), single_word=True), "<mask> swallows"),
    "space behind some tokens": (lambda: sentencepiece(["<|user|>", "<|end|>"], ["<|user|>"]), "is kept, unlike in Phi-3"),
}


@pytest.mark.parametrize(("make", "why"), ODD.values(), ids=ODD)
def test_a_tokenizer_that_llama_cpp_would_not_follow_is_refused_with_the_reason(make, why):
    with pytest.raises(ModelError) as error:
        written(make())
    assert why in error.value.what
    assert "--type adapter" in error.value.fix


def test_every_stop_token_has_a_key_and_too_many_are_refused():
    told = written(byte_level(), stops=(2, 7, 8, 9, 10, 11))
    assert [told[key] for key in STOPS] == [2, 7, 8, 9, 10, 11]
    assert not set(STOPS[1:]) & written(byte_level(), stops=(2, 2)).keys()
    with pytest.raises(ModelError, match=r"7 tokens end something in this base, and llama\.cpp stops at 6") as error:
        written(byte_level(), stops=range(2, 9))
    assert "tunesmith merge" in error.value.fix


def test_stop_tokens_that_a_file_names_keep_their_keys_but_for_the_usual_one():
    eos, eot, eom, pad, *_ = STOPS
    assert stop_tokens([5, 3], {eos: 3, eot: 4, pad: 9}) == {eos: 5, eot: 4, eom: 3, pad: 9}
    assert stop_tokens([5, 3], {eos: 3, eot: 5, eom: 3}) == {eos: 5, eot: 5, eom: 3}


def test_tokens_of_every_type_and_rows_that_stand_for_nothing():
    made = phi3_tokenizer()
    told = written(made, rows=len(made) + 2)
    assert len(told["token_list"]) == len(told["token_types"]) == len(told["token_scores"]) == len(made) + 2
    kinds = {text: kind.name for text, kind in zip(told["token_list"], told["token_types"])}
    last = told["token_list"][-1]
    assert (kinds["<s>"], kinds["<0x0A>"], kinds["\u2581th"], kinds[last]) == ("CONTROL", "BYTE", "NORMAL", "UNUSED")
    told = written(byte_level())
    assert told["token_types"][told["token_list"].index("<think>")].name == "USER_DEFINED"


def test_a_space_is_put_where_the_tokenizer_puts_it():
    assert {scheme: written(sentencepiece(scheme=scheme))["add_space_prefix"] for scheme in (None, "always", "first", "never")} == {
        None: True, "always": True, "first": False, "never": False,
    }  # fmt: skip
    assert not written(byte_level())["add_space_prefix"]


def test_bos_is_added_where_the_tokenizer_adds_it_and_the_template_does_not_leave_it_out():
    assert written(sentencepiece())["add_bos_token"]
    assert not written(phi3_tokenizer())["add_bos_token"]
    assert not written(byte_level())["add_bos_token"]
