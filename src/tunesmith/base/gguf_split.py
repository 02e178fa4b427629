"""How byte-level BPE tokenizers of GGUF files split text into words before they merge.

A file tells it by a name only (`tokenizer.ggml.pre`), which stands for expressions and for whether a word of the vocabulary is
taken whole, without merging (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp). A wrong split is no error
anywhere, only other tokens than the model learnt from.
"""

from pathlib import Path
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_GPT4,),
    "dbrx": (_GPT4,),
    "qwen2": (_GPT4.replace("{1,3}", ""),),
}
"""llama.cpp's names and the expressions they stand for, applied one after the other. "tekken" and "gpt-4o" are not among them: what
it splits by then leaves out the marks that many scripts put on letters, which the tokenizers so named do not."""
TAKEN_WHOLE = ("llama-bpe",)
"""Names under which a word of the vocabulary is taken whole."""
ALIASES = {
    "phi-2": "gpt-2", "jina-es": "gpt-2", "jina-de": "gpt-2", "modern-bert": "gpt-2",
    "starcoder": "smollm", "refact": "smollm", "command-r": "smollm", "codeshell": "smollm", "exaone": "smollm",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "pixtral": "llama-bpe",
    "smaug-bpe": "dbrx", "deepseek-r1-qwen": "qwen2",
}  # fmt: skip
"""Other names for the same."""

TEXTS = (
    "Hello world, it's IT'S we'LL they've I'd don't O'Neill", "  two  spaces\tand\t\ttabs   ",
    "one\ntwo\n\nthree \n four\r\n\r\n five", "1234567 3.14 1,000,000 x86_64 ٣٤٥ ½ ²³ Ⅷ",
    "a/b//c/\n!?...\n\n(see) [1] {x} <y> `code` #tag @me $5 50%", "snake_case camelCase HTTPServer iPhone",
    "def f(x):\n    return x ** 2  # ok\n", "Grüße, Élan ça naïve Ωmega Привет мир", "你好，世界。これはペンです。한국어",
    "हिन्दी ภาษาไทย العربية עברית", "👍🏽👩\u200d👩\u200d👧🇩🇪 ☕️ ok🙂ok", "“quoted” — dash… ‘x’",
    "\u00a0nbsp\u3000wide\u200bzero", "'", " ", "\n", "\n\n \n", " \t\n x",
)  # fmt: skip
"""What splits are told apart by; all of it in normal form C, which some tokenizers bring text into."""


def split_as_named(tokenizer: Any, file: Path) -> str | None:
    """Let a tokenizer that transformers read from a GGUF file split text as that file says, which transformers does not always do.

    Returns:
        The name of the split if it is not known here, so that the tokenizer is left as it is; else None.
    """
    import gguf

    fields = gguf.GGUFReader(file).fields
    if "tokenizer.ggml.model" not in fields or fields["tokenizer.ggml.model"].contents() != "gpt2":
        return None
    name = str(fields["tokenizer.ggml.pre"].contents()) if "tokenizer.ggml.pre" in fields else "default"
    known = ALIASES.get(name, name)
    if known not in SPLITS:
        return name
    backend, split = tokenizer.backend_tokenizer, splitter(SPLITS[known])
    if words_of(split) != words_of(backend.pre_tokenizer, backend.normalizer):
        backend.pre_tokenizer = split
    backend.model.ignore_merges = known in TAKEN_WHOLE
    return None


def words_of(pre_tokenizer: Any, normalizer: Any = None) -> list[list[str]]:
    """What merges are applied to in each of `TEXTS`, in the alphabet of bytes. Both are of the tokenizers library, or None."""
    texts = [normalizer.normalize_str(text) for text in TEXTS] if normalizer else TEXTS
    return [[word for word, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer else [text] for text in texts]


def splitter(expressions: tuple[str, ...]) -> Any:
    """A pre-tokenizer of the tokenizers library."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
