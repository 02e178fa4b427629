"""Proves that the compatibility line says of each runtime whether it loads the adapter, and if not, why."""

import ast
import shlex
from dataclasses import replace
from typing import Any

import pytest

from tunesmith.export.runtimes import Shipped, compatibility, runtimes

PLAIN = Shipped("me/yoda", {"peft_type": "LORA", "r": 8, "bias": "none"}, "org/base", "org/base", "llama", True)


def having(**config: Any) -> Shipped:
    return replace(PLAIN, config=PLAIN.config | config)


def test_plain_lora_on_a_base_of_the_hub_goes_everywhere() -> None:
    assert compatibility(PLAIN) == "transformers yes · vLLM yes · llama.cpp yes · Ollama yes"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_dora": True}, "DoRA"), ({"bias": "all"}, "trained biases"), ({"lora_bias": True}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "layers trained as a whole (lm_head)"), ({"peft_type": "LOHA"}, "it is LOHA, not LoRA"),
        ({"alpha_pattern": {"q_proj": 4}}, "layers of different rank or scale"),
        ({"trainable_token_indices": [1]}, "trained tokens"),
    ],
)  # fmt: skip
def test_what_only_peft_knows_is_named_where_it_is_in_the_way(config: dict[str, Any], why: str) -> None:
    told = {use.name: use for use in runtimes(having(**config))}
    assert told["transformers"].loads
    for name in ("vLLM", "llama.cpp", "Ollama"):
        assert not told[name].loads
        assert why in told[name].why
    assert "tunesmith merge" in told["vLLM"].why


@pytest.mark.parametrize(
    ("rank", "flag"), [(1, ""), (16, ""), (17, " --max-lora-rank 32"), (64, " --max-lora-rank 64"), (300, " --max-lora-rank 320")]
)
def test_vllm_is_given_room_for_the_rank(rank: int, flag: str) -> None:
    (line,) = runtimes(having(r=rank))[1].lines
    assert line == f"vllm serve org/base --enable-lora{flag} --lora-modules yoda=me/yoda"


def test_runtimes_are_told_of_the_template_and_of_where_answers_end_as_the_base_may_have_others() -> None:
    both = replace(PLAIN, files=frozenset({"chat_template.jinja", "generation_config.json"}))
    told = {use.name: use.lines for use in runtimes(both)}
    assert "model.generation_config = GenerationConfig.from_pretrained('me/yoda')" in told["transformers"]
    assert told["vLLM"][0] == "hf download me/yoda --local-dir yoda", "its options take files of this machine"
    assert told["vLLM"][1].endswith(" --lora-modules yoda=yoda --chat-template yoda/chat_template.jinja --generation-config yoda")
    assert told["llama.cpp"][-1].endswith(" --jinja --chat-template-file yoda/chat_template.jinja")


def test_a_rank_beyond_what_vllm_holds_is_said() -> None:
    assert "vLLM no: rank 600 is more than the 512 it can hold" in compatibility(having(r=600))


def test_vllm_takes_no_adapter_over_a_gguf_file_that_is_all_there_is_of_the_base() -> None:
    alone = replace(PLAIN, base=None, gguf=True)
    assert "vLLM no: the base is a GGUF file; merge it (tunesmith merge)" in compatibility(alone)
    assert "vLLM yes" in compatibility(replace(alone, base="org/base"))


def test_a_family_without_gguf_names_and_one_that_is_not_known() -> None:
    assert "llama.cpp no: models of type mamba have no GGUF names here" in compatibility(replace(PLAIN, family="mamba", gguf=False))
    assert "llama.cpp yes" in compatibility(replace(PLAIN, family=None))


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "qwen2", "qwen3"])
def test_what_is_exported_with_any_base_goes_to_ollama_as_one_model(family: str) -> None:
    folder = replace(PLAIN, family=family, gguf=False)
    ollama = runtimes(folder)[3]
    assert "tunesmith export yoda yoda.gguf --ollama" in ollama.lines
    dora = runtimes(replace(folder, config=folder.config | {"use_dora": True}))
    assert "export it as one model" in dora[2].why
    assert "tunesmith export yoda yoda.gguf" in dora[2].lines


def test_what_is_exported_only_with_a_gguf_base_goes_to_ollama_as_an_adapter() -> None:
    gemma = replace(PLAIN, family="gemma2", gguf=False)
    assert any("--type adapter" in line for line in runtimes(gemma)[3].lines)
    written = "".join(line for line in runtimes(gemma)[3].lines if line.endswith("> Modelfile"))
    assert "'ADAPTER ./yoda.gguf' 'PARAMETER temperature 0' 'PARAMETER repeat_penalty 1'" in written, "as chat answers"
    assert "convert_hf_to_gguf.py" in runtimes(replace(gemma, config=gemma.config | {"use_dora": True}))[2].why


def test_a_base_on_no_hub_is_said_wherever_it_is_needed() -> None:
    for use in runtimes(replace(PLAIN, base=None, base_name="tiny model", gguf=False))[:2]:
        assert "tiny model" in use.why
        assert "is on no hub" in use.why


@pytest.mark.parametrize("name", ["a b", "x'; rm -rf /; '", "$(id)", "`id`", 'q"q', "-n"])
def test_hostile_names_stay_one_word_of_a_command_and_one_string_of_python(name: str) -> None:
    adapter = replace(PLAIN, where=name, base=None, base_name=name)
    for use in runtimes(adapter):
        if use.language == "python":
            strings = [node.value for node in ast.walk(ast.parse("\n".join(use.lines))) if isinstance(node, ast.Constant)]
            assert strings == [name] * 3
        for line in use.lines if use.language == "bash" else ():
            assert not set(shlex.split(line)) & {"rm", "-rf", "/;"}
