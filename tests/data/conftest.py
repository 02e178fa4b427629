"""Tiny real tokenizers of the families whose chat templates are tested."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from tunesmith.base.templates import TEMPLATES
from tunesmith.data.render import Renderer

SENTENCES = [
    "The Force is strong in you!",
    "Strong in you, the Force is.",
    "Where does the river go, and who lives there?",
    "def f(x):\n\n    return  x\n\n\n",
    "Größe, Straße, naïve café — 12 345",
]

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Family:
    """A chat template and the control tokens it writes. stop: the one that ends an answer. answer: what the template
    makes of an answer's text. system: whether it takes a system prompt. split: how text falls into words before BPE."""

    template: str
    stop: str
    bos: str | None = None
    eos: str = "<|endoftext|>"
    controls: tuple[str, ...] = ()
    answer: Callable[[str], str] = field(default=lambda content: content)
    system: bool = True
    split: str = GPT2_SPLIT


FAMILIES = {
    "chatml": Family("chatml", "<|im_end|>", controls=("<|im_start|>", "<|im_end|>")),
    "llama3": Family(
        "llama3", "<|eot_id|>", "<|begin_of_text|>", controls=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        answer=str.strip, split=LLAMA3_SPLIT,
    ),
    "phi3": Family("phi3", "<|end|>", controls=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "gemma": Family(
        "gemma", "<end_of_turn>", "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), answer=str.strip, system=False
    ),
    "mistral": Family("mistral", "</s>", "<s>", "</s>", answer=lambda content: " " + content, system=False),
    "zephyr": Family("zephyr", "</s>", "<s>", "</s>"),
    "alpaca": Family("alpaca", "</s>", "<s>", "</s>"),
}  # fmt: skip


@cache
def _bpe(split: str) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer.to_str()


def _build(bos: str | None, eos: str, controls: tuple[str, ...], template: str, split: str = GPT2_SPLIT) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(_bpe(split))
    core.add_special_tokens([token for token in (bos, eos, *controls) if token])
    if bos:
        core.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    return FAMILIES


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[[str], Any]:
    """The tokenizer of a family, by name. It adds a BOS of its own when asked to, as real ones do."""

    @cache
    def tokenizer(name: str) -> Any:
        family = FAMILIES[name]
        return _build(family.bos, family.eos, family.controls, TEMPLATES[family.template], family.split)

    return tokenizer


@pytest.fixture(scope="session")
def renderer_of(tokenizer_of) -> Callable[..., Renderer]:
    """The renderer of a family, by name."""

    @cache
    def renderer(name: str, assistant_only: bool = True) -> Renderer:
        return Renderer(tokenizer_of(name), assistant_only)

    return renderer


@pytest.fixture(scope="session")
def tokenizer_with() -> Callable[[str], Any]:
    """A tokenizer with ChatML's control tokens and any chat template."""
    return lambda template: _build(None, "<|endoftext|>", ("<|im_start|>", "<|im_end|>"), template)


@pytest.fixture(scope="session")
def tokenizer_of_controls() -> Callable[..., Any]:
    """A tokenizer with a template, the special tokens it writes, and added tokens that are not special."""
    from tokenizers import AddedToken

    def tokenizer(template: str, controls: Iterable[str], added: Iterable[str] = ()) -> Any:
        made = _build("<BOS>", "<EOS>", tuple(controls), template, LLAMA3_SPLIT)
        made.backend_tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
        return made

    return tokenizer


SEED = "The Force is strong in you! Where does the river go, and who lives there? a b c d e x user end assistant s\n\n"


@cache
def _core(kind: str) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    alphabet = sorted({*SEED, *"<|>/[]\n éß"})
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "byte-level":
        core = Tokenizer(models.BPE(ignore_merges=True))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    elif kind == "unigram":
        core = Tokenizer(models.Unigram())
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        core.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=80, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
        )
    else:  # as Llama 2 was converted: every stretch between control tokens begins with a space
        core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        prefix = [normalizers.Prepend("▁")] if kind == "prepend" else []
        core.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=["<unk>", *pieces], initial_alphabet=alphabet, show_progress=False
        )
    core.train_from_iterator([SEED] * 4, trainer)
    state = json.loads(core.to_str())  # byte pieces are ordinary tokens
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] == "<unk>"]
    return json.dumps(state)


@pytest.fixture(scope="session")
def vocabulary_like() -> Callable[..., Any]:
    """A tokenizer of a make (byte-level, unigram, prepend as Llama 2's, replace as Gemma's) with a template and its control tokens,
    BOS and EOS first; ``rstrip``: they take the white space behind them, as Phi-3's do."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    @cache
    def tokenizer(kind: str, controls: tuple[str, ...], template: str, rstrip: bool = False) -> Any:
        core = Tokenizer.from_str(_core(kind))
        core.add_special_tokens([AddedToken(c, special=True, normalized=False, rstrip=rstrip) for c in controls])
        bos, eos = controls[:2]
        return PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token=bos, eos_token=eos, unk_token="<unk>", chat_template=template
        )

    return tokenizer
