"""On a GPU a streamed model's embedding stays in host memory, is read there, and gives the same rows."""

import gc

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.base.catalog import resolve
from tunesmith.base.load import choose_compute, load_model
from tunesmith.base.mapped import mapped
from tunesmith.recipe import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

WORDS, WIDTH = 5000, 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_host_memory_is_read_without_a_copy_and_lives_as_long_as_what_was_made_of_it(dtype):
    content = torch.randn(WORDS, WIDTH).to(dtype)
    before = torch.cuda.memory_allocated()
    there = mapped(content, torch.device("cuda"))
    assert there.is_cuda
    assert torch.cuda.memory_allocated() == before
    ids = torch.tensor([WORDS - 1, 0, 7, 7], device="cuda")
    assert torch.equal(F.embedding(ids, there).cpu(), content[ids.cpu()])
    part = there[10:]
    del there
    gc.collect()
    others = [torch.full((WORDS, WIDTH), 1.0, dtype=dtype).pin_memory() for _ in range(4)]
    assert torch.equal(part.cpu(), content[10:])
    assert len(others) == 4


@pytest.mark.parametrize("tied", [False, True])
def test_a_streamed_models_embedding_takes_no_memory_of_the_gpu_unless_it_is_the_head(tmp_path, tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    recipe = Recipe.of({"model_name_or_path": str(tmp_path), "dataset_name": "x", "dtype": "float32", "offload_base": "always"})
    before = torch.cuda.memory_allocated()
    base = load_model(resolve(str(tmp_path)), recipe, choose_compute(recipe))
    taken, matrix = torch.cuda.memory_allocated() - before, 4 * WORDS * WIDTH
    assert matrix < taken < 1.5 * matrix
    ids = torch.tensor([[3, WORDS - 1]], device="cuda")
    assert torch.equal(base.get_input_embeddings()(ids).cpu(), model.get_input_embeddings()(ids.cpu()))
