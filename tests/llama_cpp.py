"""llama.cpp itself, to ask what it makes of the files that are written for it."""

import pytest


def answers_of(model, prompts, tokens, adapter=None):
    """Its greedy answers of so many tokens at most to prompts of token ids; adapter: a GGUF file to put on the model."""
    llama = pytest.importorskip("xllamacpp")
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(model), 512, 1, 1
    if adapter is not None:
        params.lora_adapters = [llama.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = llama.Server(params)
    asked = ({"prompt": ids, "n_predict": tokens, "temperature": 0, "cache_prompt": False} for ids in prompts)
    return [server.handle_completions(request)["choices"][0]["text"] for request in asked]
