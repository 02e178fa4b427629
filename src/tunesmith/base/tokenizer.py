"""A tokenizer that cannot teach a model never to stop: padding is not EOS, and the chat template is known."""

from os.path import expanduser
from pathlib import Path
from typing import Any

from tunesmith.base.catalog import ModelSource
from tunesmith.base.model_files import check_files
from tunesmith.base.templates import TEMPLATES
from tunesmith.errors import ModelError, nearest

RESERVED = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|endoftext|>", "<|file_sep|>")
"""Tokens that vocabularies carry and chat templates do not use, most telling first."""


def load_tokenizer(source: ModelSource, chat_template: str | None = None) -> Any:
    """The model's tokenizer with a pad token other than EOS and a chat template.

    Raises:
        ModelError: no tokenizer there, no chat template, or no token free for padding.
    """
    from transformers import AutoTokenizer

    if Path(source.path).is_dir():
        check_files(Path(source.path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more precise, and transformers whatever a damaged file leads to
        raise ModelError(
            f"{source.base} has no tokenizer that can be loaded: {str(error).splitlines()[0] if str(error) else error!r}",
            "Check the name, or that the folder holds tokenizer.json.",
        ) from error
    if hasattr(tokenizer, "legacy"):  # saved without it, what is loaded again would put spaces elsewhere
        tokenizer.init_kwargs["legacy"] = tokenizer.legacy
    if chat_template is not None:
        tokenizer.chat_template = _with_bos(tokenizer, template_named(chat_template))
    elif isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = _in_one(tokenizer.chat_template)
    if not isinstance(tokenizer.chat_template, str | None):
        raise ModelError(f"The chat template of {source.base} is no text.", "Download the model again, or choose another.")
    if not tokenizer.chat_template:
        raise ModelError(
            f"{source.base} has no chat template: it is a base model, not one trained to chat.",
            f"Choose one with --chat-template ({', '.join(sorted(TEMPLATES))}), or use the model's instruct version.",
        )
    make_pad_safe(tokenizer)
    return tokenizer


def make_pad_safe(tokenizer: Any) -> None:
    """Give the tokenizer a pad token that is neither EOS nor used by its chat template; never a new, untrained one.

    Raises:
        ModelError: the vocabulary has no such token.
    """
    used = str(tokenizer.chat_template or "")
    pad, eos = tokenizer.pad_token, tokenizer.eos_token
    if pad is not None and pad != eos and pad not in used:
        return
    vocabulary = tokenizer.get_vocab()
    specials = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    for candidate in (tokenizer.unk_token, *RESERVED, *reversed(specials)):
        if candidate in vocabulary and candidate != eos and candidate not in used and candidate != tokenizer.bos_token:
            tokenizer.pad_token = candidate
            return
    raise ModelError(
        "The tokenizer pads with its EOS token and has no other token to spare, so a model could not learn to stop.",
        "Set pad_token in tokenizer_config.json to a token that ordinary text does not contain.",
    )


def _in_one(templates: dict[str, str]) -> str | None:
    """A model's named templates as one, which takes ``tool_use`` where there are tools and else ``default``, as transformers does.
    Saved by their names, each would be a file, and the names came with the model."""
    default, tools = (templates.get(name, "").removesuffix("\n") for name in ("default", "tool_use"))
    if not default or not tools:
        return default or None
    # A plus keeps the white space that jinja would take away around a block.
    return f"{{% if tools is defined and tools is not none +%}}{tools}{{%+ else +%}}{default}{{%+ endif %}}"


def _with_bos(tokenizer: Any, template: str) -> str:
    """A template writes all special tokens; one made for other models must write this model's BOS, if it begins with one."""
    if tokenizer.bos_token_id is None or tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return template
    try:
        begun = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False)
        written = begun.lstrip().startswith(tokenizer.bos_token)
    except Exception:  # such as a refusal to begin without a system prompt; what is wrong is told when the template is put to use
        written = "bos_token" in template
    return template if written else "{{ bos_token }}" + template


def template_named(name: str) -> str:
    """A built-in chat template, or that of a file. Raises ModelError if there is neither."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(expanduser(name))
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"The chat template {path} cannot be read: {error}.", "Save it as UTF-8 text.") from error
    raise ModelError(
        f"There is no chat template {name!r}{nearest(name, TEMPLATES)}.",
        f"Use one of {', '.join(sorted(TEMPLATES))}, or the path of a .jinja file.",
    )
