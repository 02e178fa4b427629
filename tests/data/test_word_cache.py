"""Proves that tokens found word by word are those of the tokenizer, for any ASCII text, and that others are left to it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tunesmith.data import word_cache
from tunesmith.data.token_cache import TokenCache
from tunesmith.data.word_cache import WordCache

ASCII = st.text(st.characters(max_codepoint=127), max_size=60)
MIXED = st.lists(
    st.one_of(ASCII, st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im_", "é", "'S", "  \n", "don't", "İ", "word " * 5])),
    max_size=6,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["chatml", "llama3", "phi3", "zephyr"]), st.lists(MIXED, max_size=5))
@example("llama3", ["\x1c a\x0b\n\r\n  b 'sS'LL 12345"])
def test_the_tokens_are_those_of_the_tokenizer(tokenizer_of, family, texts):
    tokenizer = tokenizer_of(family)
    cache = TokenCache(tokenizer)
    assert cache.encode(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("family", ["chatml", "llama3", "phi3", "zephyr"])
def test_byte_level_tokenizers_are_read_by_words(tokenizer_of, family):
    words = WordCache.of(tokenizer_of(family).backend_tokenizer)
    assert words.encode(["The wind, the wind."]) == [
        tokenizer_of(family)("The wind, the wind.", add_special_tokens=False)["input_ids"]
    ]


def test_an_added_token_that_is_not_special_is_no_word(tokenizer_of_controls):
    tokenizer = tokenizer_of_controls("{{ messages[0]['content'] }}", ["<|end|>"], ["<think>"])
    texts = ["a <think>b<|end|>", "a <think>", "b<|end|>c", "think <thin k>"]
    assert TokenCache(tokenizer).encode(texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _tokenizer(*steps, normalizer=None, dropout=None):
    made = Tokenizer(models.BPE(dropout=dropout))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    if normalizer:
        made.normalizer = normalizer
    made.add_special_tokens([AddedToken("<|end|>")])
    return made


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@pytest.mark.parametrize(
    "backend",
    [
        _tokenizer(pre_tokenizers.Whitespace()),
        _tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        _tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.Lowercase()),
        _tokenizer(pre_tokenizers.Digits(), pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        _tokenizer(pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        _tokenizer(pre_tokenizers.Split(Regex(r"\w+"), "removed"), BYTES),
        _tokenizer(pre_tokenizers.Split(Regex(r"\p{Lu}+|\P{Lu}+"), "isolated"), BYTES),
        _tokenizer(BYTES),
        _tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False), dropout=0.1),
    ],
)
def test_a_tokenizer_that_does_more_or_splits_in_another_way_is_left_alone(backend):
    assert WordCache.of(backend) is None


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        [*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (r"\p{N}", word_cache.GPT2)), BYTES],
    ],
    ids=["digits", "numbers", "two splits"],
)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(ASCII | st.text("ab 12.'s\n\t", max_size=20), max_size=4))
@example(texts=["a  12 b 3\n\n4  5c '6 don't7s"])
def test_words_are_found_where_numbers_are_cut_out_first(tokenizer_of, steps, texts):
    backend = Tokenizer.from_str(tokenizer_of("chatml").backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    words = WordCache.of(backend)
    assert words is not None
    assert words.encode(texts) in (None, [one.ids for one in backend.encode_batch(texts, add_special_tokens=False)])
    assert words.encode(["a  12 b 3"]) == [backend.encode("a  12 b 3", add_special_tokens=False).ids]


def test_words_that_are_forgotten_are_found_again(tokenizer_of, monkeypatch):
    monkeypatch.setattr(word_cache, "MOST", 3)
    words = WordCache.of(tokenizer_of("chatml").backend_tokenizer)
    texts = ["one two three four five", "six seven one two"]
    for _ in range(3):
        assert words.encode(texts) == [tokenizer_of("chatml")(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_a_very_long_word_is_not_kept(tokenizer_of):
    words = WordCache.of(tokenizer_of("chatml").backend_tokenizer)
    assert words.encode(["a" * 65]) is None
    assert TokenCache(tokenizer_of("chatml")).encode(["a" * 65]) == [
        tokenizer_of("chatml")("a" * 65, add_special_tokens=False)["input_ids"]
    ]
