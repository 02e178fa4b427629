"""A tokenizer in GGUF's form (`tokenizer.ggml.*`), for bases that did not come as GGUF.

llama.cpp has two tokenizers that these families use: "gpt2", byte-level BPE, which merges by rank within words, and "llama",
SentencePiece's BPE, which merges by the score of what comes out and spells unknown characters in bytes. Which one it is, and how
it treats spaces, is found by what the tokenizer does (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer).
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from tunesmith.base.gguf_split import TEXTS
from tunesmith.errors import ModelError
from tunesmith.export.gguf_pre_tokenizer import pre_tokenizer_of

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
STOPS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"))
"""Keys of tokens at which llama.cpp stops. The last three are of filling in, but it stops at them whatever it does."""
NOT_STRIPPED = {"<unk>", "<s>", "<|endoftext|>"}
"""Tokens after which llama.cpp keeps white space in a model called Phi-3; after all other special ones it drops it there."""


def add_vocabulary(writer: Any, tokenizer: Any, rows: int, stop_ids: Sequence[int]) -> None:
    """Add the tokenizer, its template and its special tokens to a GGUFWriter.

    Args:
        tokenizer: of transformers, with a chat template. rows: of the embedding; there are as many tokens. stop_ids: tokens that
            end an answer, the usual one first.

    Raises:
        ModelError: llama.cpp could not make the same tokens of the same text.
    """
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _unlike(f"it is {model['type']}, not byte-level or SentencePiece's BPE")
    added = tokenizer.added_tokens_decoder
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if model["byte_fallback"]:
        scores = _scores(model["vocab"], merges, {token.content for token in added.values()})
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
    else:
        scores = None
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_of(backend))
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_add_space_prefix(scores is not None and _space_prefix(backend, added, prompt))
    _add_tokens(writer, model["vocab"], added, rows, scores)
    _add_special(writer, tokenizer, prompt, stop_ids)
    _add_stripping(writer, added)


def stop_tokens(stop_ids: Sequence[int], given: Mapping[str, int]) -> dict[str, int]:
    """Tokens that end an answer by their keys in GGUF. given: those a file has already, which are kept, the first apart.

    Raises:
        ModelError: there are more tokens than keys.
    """
    named = {**given, STOPS[0]: stop_ids[0]}
    free = [key for key in STOPS if key not in named]
    more = [token for token in dict.fromkeys(stop_ids) if token not in named.values()]
    if len(more) > len(free):
        raise ModelError(
            f"{len(named) + len(more)} tokens end something in this base, and llama.cpp stops at {len(STOPS)} at most.",
            "Use `tunesmith merge` for transformers and vLLM.",
        )
    return named | dict(zip(free, more))


def _unlike(why: str) -> ModelError:
    return ModelError(
        f"llama.cpp would not make the same tokens as this base's tokenizer: {why}.",
        "Export the adapter alone (--type adapter), or use `tunesmith merge` for transformers and vLLM.",
    )


def _add_tokens(
    writer: Any, vocabulary: Mapping[str, int], added: Mapping[int, Any], rows: int, scores: Mapping[str, float] | None
) -> None:
    """A text and a type for each row of the embedding, those that stand for nothing included."""
    from gguf import TokenType

    texts, types = [f"[PAD{row}]" for row in range(rows)], [TokenType.UNUSED] * rows
    for text, token in vocabulary.items():
        if token < rows:
            texts[token], types[token] = text, TokenType.BYTE if scores and text in BYTES else TokenType.NORMAL
    for token, kind in added.items():
        if token < rows:
            texts[token], types[token] = kind.content, TokenType.CONTROL if kind.special else TokenType.USER_DEFINED
    writer.add_token_list(texts)
    writer.add_token_types(types)
    if scores is not None:
        writer.add_token_scores([scores.get(text, 0.0) for text in texts])


def _add_special(writer: Any, tokenizer: Any, prompt: str, stop_ids: Sequence[int]) -> None:
    """Named tokens; each of the stops ends an answer. llama.cpp puts BOS before a text if told so, what a template wrote included
    unless that has it already: not to be told where the tokenizer does it and the template, which the model was trained with, does
    not."""
    named = {"bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    for name, token in named.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    for key, token in stop_tokens(stop_ids, {}).items():
        writer.add_uint32(key, token)
    adds = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    writer.add_add_bos_token(adds and prompt.startswith(tokenizer.bos_token))
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _add_stripping(writer: Any, added: Mapping[int, Any]) -> None:
    """Some tokens swallow the white space beside them. GGUF has no word for it; llama.cpp goes by the model's name."""
    if odd := [kind.content for kind in added.values() if kind.lstrip or kind.single_word]:
        raise _unlike(f"{odd[0]} swallows the white space before it, or is found only as a whole word")
    if not any(kind.rstrip for kind in added.values()):
        return
    for kind in added.values():
        if kind.rstrip == (kind.content in NOT_STRIPPED):
            raise _unlike(f"white space after {kind.content} is {'dropped' if kind.rstrip else 'kept'}, unlike in Phi-3")
    writer.add_name("Phi-3")


def _scores(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]], added: set[str]) -> dict[str, float]:
    """Scores under which SentencePiece's merging is the one by rank: it joins whatever makes the piece of highest score.

    Raises:
        ModelError: bytes are missing, or merges are not all those that lead to a piece, one piece after the other.
    """
    if missing := [byte for byte in BYTES if byte not in vocabulary]:
        raise _unlike(f"{missing[0]} is not in its vocabulary")
    pieces = [piece for piece, _ in groupby(left + right for left, right in merges)]
    possible = {
        (token[:cut], token[cut:])
        for token in vocabulary.keys() - added - set(BYTES)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    }
    if len(set(pieces)) != len(pieces) or possible != set(merges):
        raise _unlike("its merges are not those that SentencePiece's scores give")
    return {piece: -float(rank) for rank, piece in enumerate(pieces)}


def _space_prefix(tokenizer: Any, added: Mapping[int, Any], prompt: str) -> bool:
    """Whether a space is put before what follows a special token, as llama.cpp then also does where a text begins. (What begins
    with a space itself is not asked about: some tokenizers then put none, and llama.cpp one more.)

    Raises:
        ModelError: neither always nor never; or otherwise where a text begins, and conversations begin with plain text.
    """
    texts = [text for text in TEXTS if not text.startswith(" ")]

    def told(prefix: str, text: str) -> list[int]:
        return [token.id for token in tokenizer.model.tokenize(prefix + text.replace(" ", SPACE))]

    def after(kind: Any, text: str) -> list[int]:
        return list(tokenizer.encode(kind.content + text, add_special_tokens=False).ids[1:])

    cases = [(kind, text.lstrip() if kind.rstrip else text) for kind in added.values() for text in texts]
    for prefix in (SPACE, ""):
        if all(after(kind, text) == told(prefix, text) for kind, text in cases if text):
            begun = all(tokenizer.encode(text, add_special_tokens=False).ids == told(prefix, text) for text in texts)
            if begun or any(prompt.startswith(kind.content) for kind in added.values()):
                return bool(prefix)
    raise _unlike("it treats spaces otherwise")
