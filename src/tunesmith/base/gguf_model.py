"""The model and the tokenizer in a GGUF file, as transformers has them: all that is in the file, and nothing else."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.base.gguf_config import FAMILIES, Facts, completed
from tunesmith.base.gguf_split import split_as_named
from tunesmith.errors import ModelError

OTHER_FORM = "Use the model's folder of .safetensors files."


def read_model(file: Path, dtype: Any) -> Any:
    """The model, dequantised.

    Raises:
        ModelError: tensors are missing, of another size than their model's, or of no use to it. As transformers does for what it
            cannot read.
    """
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = Facts(file)
    config = completed(AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False), facts)
    # Newer transformers can keep the blocks packed and must be told not to; older ones always dequantise.
    packed = getattr(transformers, "GgufConfig", None)
    how: dict[str, Any] = {"quantization_config": packed(dequantize=True)} if packed else {}
    with _quiet():  # what it tells of is refused, in fewer words
        model, loading = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            **how,
        )
    _check(model, loading, facts)
    return model


def read_tokenizer(file: Path) -> tuple[Any, str | None]:
    """The tokenizer; and the name of how it splits text, if that is not known here. Raises as transformers does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    return tokenizer, split_as_named(tokenizer, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """No reports of transformers."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _size(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape))


def _check(model: Any, loading: dict[str, Any], facts: Facts) -> None:
    """Raises ModelError if what was loaded is not what the file holds."""
    if missing := loading["missing_keys"]:
        raise ModelError(f"{facts.file} has no {min(missing)}, and this {model.config.model_type} needs it.", OTHER_FORM)
    if unlike := loading["mismatched_keys"]:
        name, there, wanted = min(unlike)
        heads = f" with heads of {head}" if (head := facts.get("attention.key_length")) else ""
        raise ModelError(
            f"{facts.file}: {name} has the size {_size(there)}, and it is {_size(wanted)} in the {model.config.model_type} that "
            f"transformers makes of what the file says of itself{heads}.",
            OTHER_FORM,
        )
    held = sum(int(tensor.n_elements) for name, tensor in facts.tensors.items() if not name.startswith("rope_f"))
    unread = held - sum(parameter.numel() for parameter in model.parameters())
    if unread and model.config.model_type in FAMILIES:
        raise ModelError(
            f"{facts.file} holds {unread:,} numbers that transformers has no place for in a {model.config.model_type}.", OTHER_FORM
        )
