"""Which of llama.cpp's pre-tokenizers (`base.gguf_split`) splits text as a tokenizer does: found by what it does to hard texts,
not by its name."""

from typing import Any

from tunesmith.base.gguf_split import SPLITS, TAKEN_WHOLE, splitter, words_of
from tunesmith.errors import ModelError


def pre_tokenizer_of(tokenizer: Any) -> str:
    """llama.cpp's name for how a byte-level BPE tokenizer (of the tokenizers library) splits text.

    Raises:
        ModelError: it splits, or changes, some of the texts as none does that llama.cpp knows.
    """
    words = words_of(tokenizer.pre_tokenizer, tokenizer.normalizer)
    alike = [name for name, split in SPLITS.items() if words_of(splitter(split)) == words]
    whole = bool(getattr(tokenizer.model, "ignore_merges", False))
    for name in alike:
        if (name in TAKEN_WHOLE) == whole:
            return name
    if alike and _all_made_by_merges(tokenizer):
        return alike[0]
    raise ModelError(
        f"This base's tokenizer splits text as none of llama.cpp's pre-tokenizers that are known here does ({', '.join(SPLITS)}); "
        "with a wrong one it would answer worse without a word.",
        "Export the adapter alone (--type adapter), or use `tunesmith merge` for transformers and vLLM.",
    )


def _all_made_by_merges(tokenizer: Any) -> bool:
    """Whether taking words whole makes no difference: what merging makes of any token's text is that token."""
    from tokenizers import Tokenizer

    model = Tokenizer.from_str(tokenizer.to_str()).model
    model.ignore_merges = False
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return all(len(model.tokenize(token)) == 1 for token in tokenizer.get_vocab() if token not in added)
