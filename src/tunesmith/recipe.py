"""Recipe: every setting of a run, stated once. Flags, YAML, help, documentation and validation derive from it."""

from collections.abc import Callable, Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from tunesmith.amount import parse_bytes
from tunesmith.elsewhere import check_elsewhere
from tunesmith.errors import RecipeError, nearest
from tunesmith.mixed_data import DataFormat, MixedData, check_beside, check_columns, mixture_name, repeated
from tunesmith.refusal import explain
from tunesmith.yaml_text import read_yaml

_NUMBERS = (int, float, int | None, float | None)

GROUPS = ("model", "adapter", "data", "training", "output")


def _setting(default: Any, group: str, help: str, *aliases: str, **limits: Any) -> Any:
    """A field with its help text, the group it is listed under and the names other tools give it."""
    return Field(default, description=help, json_schema_extra={"group": group, "aliases": list(aliases)}, **limits)


class Recipe(BaseModel):
    """Everything that decides what a run does. Names are those of transformers, peft and trl."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    model_name_or_path: str = _setting(
        "smollm2-135m", "model", "Base model: hub id (name@revision), folder, .gguf file, or the bundled smollm2-135m.",
        "base_model", "model", "model_id", "model_name", "checkpoint_dir",
    )  # fmt: skip
    load_in_4bit: bool = _setting(
        True, "model", "Quantise the decoder's linears to 4 bits: a quarter of the memory of 16 bits.", "q_lora", "qlora"
    )
    load_in_8bit: bool = _setting(False, "model", "Quantise to 8 bits (LLM.int8) instead of 4.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = _setting(
        "nf4", "model", "4-bit code; nf4 fits normally distributed weights best.", "quantization_type"
    )
    bnb_4bit_use_double_quant: bool = _setting(
        True, "model", "Quantise the quantisation constants too: 0.4 bits a weight less.", "double_quantization"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto", "model", "Compute type; auto takes what the device does well.", "torch_dtype", "compute_dtype"
    )
    device: Literal["auto", "cpu", "cuda"] = _setting("auto", "model", "Where to train; auto takes a GPU if there is one.")
    chat_template: str | None = _setting(
        None, "model", "Built-in template by name (chatml, llama3, phi3, gemma, …) or a .jinja file; default the model's own.",
        "template", "chat_template_path", "prompt_style",
    )  # fmt: skip
    dequantize: Literal["auto", "always", "never"] = _setting(
        "auto", "model", "Keep the 4-bit weights dequantised for speed, same numbers; auto does when memory allows."
    )
    cache_base: bool = _setting(True, "model", "Keep the 4-bit base on disk once it was made, so that the next run starts sooner.")
    offload_base: Literal["auto", "always", "never"] = _setting(
        "auto", "model", "Keep the 4-bit base in host memory and stream it to the GPU layer by layer; auto does as a last resort."
    )

    lora_r: int = _setting(8, "adapter", "Rank of the adapter; 8 holds a style, 16-64 more knowledge.", "lora_rank", "rank", ge=1)
    lora_alpha: float = _setting(16, "adapter", "Scale: the update is multiplied by alpha / r.", gt=0)
    lora_dropout: float = _setting(0.0, "adapter", "Dropout before the adapter; runs without it learnt as much.", ge=0, lt=1)
    lora_target_modules: str | list[str] = _setting(
        "all-linear", "adapter", "Linear layers that get an adapter: all-linear, or names such as q_proj,v_proj.",
        "lora_target", "target_modules", "lora_target_linear",
    )  # fmt: skip
    lora_bias: Literal["none", "all", "lora_only"] = _setting("none", "adapter", "Biases that are trained as well.", "bias")
    use_rslora: bool = _setting(False, "adapter", "Scale by alpha / sqrt(r): steadier at high rank.", "rslora")
    use_dora: bool = _setting(False, "adapter", "DoRA: magnitude and direction apart; slower.", "dora", "peft_use_dora")

    dataset_name: str = _setting(
        "yoda", "data", "Rows: hub id, file, folder or several with commas (jsonl, json, csv, tsv, parquet), or the bundled yoda.",
        "dataset", "data", "train_file", "dataset_path", "train_data",
    )  # fmt: skip
    datasets: list[MixedData] | None = _setting(
        None, "data", "A mixture instead: list of {path, type, split, subset, weight}; weight 2 uses rows twice, 0.5 half of them."
    )
    dataset_format: DataFormat = _setting(
        "auto", "data", "How rows are read; auto finds it by the columns.", "dataset_type", "data_format"
    )
    dataset_split: str = _setting("train", "data", "Split of a hub data set.", "split", "train_split")
    dataset_config: str | None = _setting(None, "data", "Subset of a hub data set.", "subset")
    prompt: str | None = _setting(None, "data", "Column with the user's text.", "prompt_column", "input_column")
    completion: str | None = _setting(None, "data", "Column with the answer.", "completion_column", "output_column")
    messages: str | None = _setting(None, "data", "Column with the conversation.", "messages_column", "conversations")
    system: str | None = _setting(None, "data", "Column with the system prompt.", "system_column", "field_system")
    text: str | None = _setting(
        None, "data", "Column with plain text: every token is trained.", "dataset_text_field", "text_column", "text_field"
    )
    tools: str | None = _setting(None, "data", "Column with the tools the assistant may call.", "tools_column")
    on_bad_row: Literal["error", "skip"] = _setting(
        "error", "data", "A row that cannot be trained on: stop and say why, or leave such rows out and count them.", "bad_rows"
    )
    max_rows: int | None = _setting(
        None, "data", "Use only the first rows of each data set.", "max_samples", "max_train_samples", ge=1
    )
    streaming: bool = _setting(
        False, "data", "Tokenise rows while others are trained on: starts at once, however many there are; needs max_steps.",
        "dataset_streaming",
    )  # fmt: skip
    val_size: float = _setting(
        0.0, "data", "Rows held out for evaluation: a share below 1 or a count.",
        "val_set_size", "test_size", "val_split_fraction", "split_dataset_ratio", ge=0,
    )  # fmt: skip
    eval_dataset: str | None = _setting(None, "data", "Held-out rows from a file instead.", "eval_file", "validation_file")
    max_length: int | None = _setting(
        None, "data", "Longest row in tokens; default the shortest that cuts nothing, up to the model's limit.",
        "max_seq_length", "sequence_len", "cutoff_len", "max_seq_len", "model_max_length", ge=1,
    )  # fmt: skip
    packing: Literal["bfd", "wrapped", "none"] = _setting(
        "bfd", "data", "bfd: whole rows, best fit, isolated; wrapped: concatenate and cut (the reference); none.",
        "sample_packing", "packing_strategy", "packed", "neat_packing",
    )  # fmt: skip
    assistant_only_loss: bool = _setting(
        True, "data", "Train on the answers only; false trains on every token.", "completion_only_loss", "mask_prompt"
    )
    shared_prefix: bool = _setting(True, "data", "Compute tokens that rows begin with in common once: same gradient.")

    num_train_epochs: float = _setting(3.0, "training", "Passes over the data; fractions allowed.", "num_epochs", "epochs", gt=0)
    max_steps: int = _setting(-1, "training", "Stop after so many updates; -1 for no limit.", ge=-1)
    per_device_train_batch_size: int | None = _setting(
        None, "training", "Packed rows of max_length per forward pass; default 32, fewer for long rows or little data.",
        "micro_batch_size", "batch_size", "train_batch_size", ge=1,
    )  # fmt: skip
    gradient_accumulation_steps: int = _setting(
        1, "training", "Forward passes per update.", "grad_accumulation_steps", "accumulate_grad_batches", ge=1
    )
    learning_rate: float | None = _setting(
        None, "training", "Peak learning rate; default by model width, 5e-4 (2000 / hidden_size)^0.78.", "lr", gt=0
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = _setting(
        "linear", "training", "How the rate falls to zero; linear spends it best in short runs.", "lr_scheduler", "lr_schedule"
    )
    warmup_ratio: float = _setting(0.0, "training", "Share of the updates spent rising to the peak.", ge=0, lt=1)
    warmup_steps: int = _setting(0, "training", "Updates spent rising to the peak; wins over warmup_ratio.", ge=0)
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = _setting(
        "adamw_torch", "training", "Optimizer; the 8-bit and paged ones need a GPU and save little with LoRA.", "optimizer"
    )
    weight_decay: float = _setting(0.0, "training", "AdamW's decay; an adapter starts near zero and needs none.", ge=0)
    adam_beta1: float = _setting(0.9, "training", "AdamW's first decay rate.", ge=0, lt=1)
    adam_beta2: float = _setting(0.999, "training", "AdamW's second decay rate.", ge=0, lt=1)
    adam_epsilon: float = _setting(1e-8, "training", "AdamW's epsilon.", gt=0)
    max_grad_norm: float = _setting(1.0, "training", "Clip the gradient's norm; 0 turns it off.", "gradient_clipping", ge=0)
    gradient_checkpointing: bool | Literal["auto"] = _setting(
        "auto", "training", "Recompute activations in backward: a third slower, far less memory; auto does if memory is short.",
        "activation_checkpointing",
    )  # fmt: skip
    activation_offloading: bool | Literal["auto"] = _setting(
        "auto", "training", "Keep what backward needs in host memory meanwhile; auto does if GPU memory is short."
    )
    memory: str | None = _setting(
        None, "training", "Plan as if only so much memory were there, such as 6GB; default what is free.", "max_memory"
    )
    shuffle: bool = _setting(True, "training", "Draw the rows in a new order each epoch.")
    seed: int = _setting(42, "training", "Decides order, adapter initialisation and dropout.", "random_seed", ge=0)
    logging_steps: int = _setting(10, "training", "Updates between two lines when the output is not a terminal.", ge=1)
    eval_steps: int | None = _setting(None, "training", "Updates between two evaluations; default once an epoch.", ge=1)
    save_steps: int | None = _setting(None, "training", "Updates between two checkpoints; default by time alone.", ge=1)
    save_minutes: float = _setting(5.0, "training", "Minutes between two checkpoints; 0 turns saving by time off.", ge=0)
    save_total_limit: int = _setting(2, "training", "Newest checkpoints that are kept.", ge=1)
    load_best_model_at_end: bool = _setting(False, "training", "Keep the adapter with the lowest held-out loss, not the last one.")

    output_dir: str | None = _setting(
        None, "output", "The run's folder; default runs/MODEL-DATA with a number.", "out_dir", "output", "adapter_path", "save_dir"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """True and false are no numbers, though pydantic would take them for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in _NUMBERS:
            raise ValueError("a number is needed here")
        return value

    @field_validator("packing", mode="before")
    @classmethod
    def _packing_flag(cls, value: Any) -> Any:
        return {True: "bfd", False: "none"}[value] if isinstance(value, bool) else value

    @field_validator("memory", mode="before")
    @classmethod
    def _memory_amount(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
        if isinstance(text, str) and parse_bytes(text) < 10**6:
            raise ValueError("it is less than a megabyte: add a unit, such as 6GB")
        return text

    @field_validator("val_size")
    @classmethod
    def _share_or_count(cls, value: float) -> float:
        if value > 1 and value % 1:
            raise ValueError("a share is below 1, a count is whole")
        return value

    @field_validator("output_dir")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return expanduser(value) if value else value  # what stands in YAML, or behind =, no shell expands

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else parse_bytes(self.memory)

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def _target_list(cls, value: Any) -> Any:
        if value in (True, "all", ["all"], ["all-linear"]):
            return "all-linear"
        names = value.split(",") if isinstance(value, str) and value != "all-linear" else value
        if isinstance(names, list):
            names = [name.strip() if isinstance(name, str) else name for name in names]
            names = [name for name in names if name != ""]
            if not names:
                raise ValueError("name at least one layer, or all-linear")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        check_columns(self.messages, self.prompt, self.completion, self.text)
        if self.datasets == []:
            raise ValueError("datasets names no data set")
        if twice := repeated(self.datasets or []):
            raise ValueError(f"datasets names {twice} twice: give it one entry, with a weight")
        if self.datasets and self.dataset_name != mixture_name(self.datasets):
            raise ValueError("dataset_name and datasets both say where rows come from: give one")
        if self.streaming and self.datasets:
            raise ValueError("streaming reads rows in their order, which cannot mix data sets: write the mixture into one file")
        if self.val_size and self.eval_dataset:
            raise ValueError("val_size cuts held-out rows from the data, eval_dataset brings them: give one")
        if self.use_dora and self.lora_bias == "lora_only":
            raise ValueError("use_dora does not go with lora_bias: lora_only")
        return self

    @staticmethod
    def of(
        settings: Mapping[str, Any], echo: Callable[[str], None] = lambda line: None, mixture: str = "datasets"
    ) -> "Recipe":  # fmt: skip
        """The recipe these settings make; other tools' names are accepted and ``echo`` told their canonical one. mixture: what
        messages call the place of ``datasets``.

        Raises:
            RecipeError: an unknown key (with the nearest known one), two values for one key, a wrong value, or one that the
                entries of a mixture have to say.
        """
        known = canonical_settings(settings, echo)
        if known.get("load_in_8bit") is True:
            known.setdefault("load_in_4bit", False)
        if (mixed := known.get("datasets")) and isinstance(mixed, list):
            known.setdefault("dataset_name", mixture_name(mixed))
            check_beside(mixed, {k: v for k, v in known.items() if v != Recipe.model_fields[k].default}, mixture)
        try:
            recipe = Recipe(**known)
        except ValidationError as error:
            raise RecipeError(explain(error, Recipe.model_fields), "See `tunesmith train --help` for every setting.") from error
        if recipe.load_in_4bit and recipe.load_in_8bit:
            raise RecipeError("load_in_4bit and load_in_8bit are both set.", "Keep one of the two.")
        return recipe

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """Settings of a YAML file, as written there.

        Raises:
            RecipeError: no such file, not YAML, or not a mapping.
        """
        if path.exists() and not path.is_file():  # to open a pipe would be to wait
            raise RecipeError(f"{path} is not a file.", "Give a YAML file.")
        try:
            settings = read_yaml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror or error}.", "Check the path of the YAML file.") from error
        except ValueError as error:
            raise RecipeError(f"{path} is not valid YAML: {error}.", "Mend the file at that place.") from error
        if not isinstance(settings, dict):
            raise RecipeError(f"{path} does not hold `key: value` lines.", "Write one setting a line, such as `lora_r: 8`.")
        return {str(key): value for key, value in settings.items()}

    def write(self, path: Path) -> None:
        """The whole recipe as YAML, every setting with its value, in the order of this file."""
        path.write_text(yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _aliases() -> dict[str, str]:
    names = {name: name for name in Recipe.model_fields}
    for name, field in Recipe.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        names.update({str(alias): name for alias in extra["aliases"]})  # type: ignore[union-attr]
    return names


ALIASES = _aliases()
"""Every accepted spelling of a setting, to its canonical name."""


def _bits(key: str, value: Any) -> tuple[str, bool]:
    if value not in (4, 8):
        raise RecipeError(f"{key}: {value!r} will not do: 4 or 8 bits.", "For no quantisation set load_in_4bit to false.")
    return f"load_in_{value}bit", True


_CONVERTED: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "train_on_inputs": lambda value: ("assistant_only_loss", not value),
    "train_on_input": lambda value: ("assistant_only_loss", not value),
    "train_on_prompt": lambda value: ("assistant_only_loss", not value),
    "quantization_bit": lambda value: _bits("quantization_bit", value),
    "quant_bits": lambda value: _bits("quant_bits", value),
}
"""Spellings whose value changes too."""


def canonical(key: str, value: Any) -> tuple[str, Any]:
    """The canonical name of a setting, and its value there.

    Raises:
        RecipeError: nobody calls any setting by this name, or another tool one that is none here; the nearest known one, or what
            to do instead, is in the message.
    """
    name = key.replace("-", "_")
    if name in _CONVERTED:
        return _CONVERTED[name](value)
    if name in ALIASES:
        return ALIASES[name], value
    check_elsewhere(key, value)
    raise RecipeError(
        f"There is no setting {key!r}{nearest(name, [*ALIASES, *_CONVERTED])}.", "`tunesmith train --help` lists them all."
    )


def canonical_settings(settings: Mapping[str, Any], echo: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Settings under their canonical names; ``echo`` is told of every other spelling.

    Raises:
        RecipeError: an unknown key, or two values for one setting.
    """
    known: dict[str, Any] = {}
    for key, given in settings.items():
        name, value = canonical(key, given)
        if name != key.replace("-", "_"):
            echo(f"{key} → {name}: {value}")
        if known.get(name) is True and isinstance(value, str):
            pass  # `packing: true` beside `packing_strategy: wrapped`: the strategy says more
        elif value is True and isinstance(known.get(name), str):
            continue
        elif name in known and known[name] != value:
            raise RecipeError(f"{name} is set twice, to {known[name]!r} and {value!r}.", "Keep one of the two.")
        known[name] = value
    return known
