"""llama.cpp itself, to ask what it makes of the files that are written for it."""

import json
import urllib.request

import pytest


def serve(model, adapter=None):
    """Its server for a GGUF file; adapter: a GGUF file to put on the model."""
    llama = pytest.importorskip("xllamacpp")
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(model), 512, 1, 1
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter is not None:
        params.lora_adapters = [llama.CommonAdapterLoraInfo(str(adapter), 1.0)]
    return llama.Server(params)


def ask(server, path, **body):
    """Its answer to an HTTP request."""
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def answers_of(model, prompts, tokens, adapter=None):
    """Its greedy answers of so many tokens at most to prompts of token ids."""
    server = serve(model, adapter)
    return [_complete(server, ids, tokens)["content"] for ids in prompts]


def continued(server, prompts, tokens):
    """The tokens it continues prompts of token ids with, greedily, and whether it stopped by itself."""
    answers = [_complete(server, ids, tokens) for ids in prompts]
    return [(answer["tokens"], answer["stop_type"] == "eos") for answer in answers]


def tokenised(server, texts, begin=False):
    """The tokens it makes of texts in which control tokens count; begin: of whole prompts, with BOS if it adds one."""
    return [ask(server, "/tokenize", content=text, add_special=begin, parse_special=True)["tokens"] for text in texts]


def _complete(server, prompt, tokens):
    return ask(server, "/completion", prompt=prompt, n_predict=tokens, temperature=0, cache_prompt=False, return_tokens=True)
