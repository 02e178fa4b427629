"""The flat path against transformers' own padded forward: the same loss and the same adapter gradients, family by family."""

import pytest
import torch
from tests.invariants.families import FAMILIES, build, documents

from tunesmith.base.adapter import adapter_parameters
from tunesmith.base.lean import speed_up
from tunesmith.data.packing import make_pack
from tunesmith.training.step import choose_loss, fast_loss, plain_loss


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_models_own(family):
    base, model = build(family)
    parameters = adapter_parameters(model)
    for name, parameter in parameters.items():
        torch.manual_seed(len(name))
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.2
    rows = [[d] for d in documents()]
    expected = plain_loss(base)(make_pack(rows, shared_prefix=False))
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in parameters.items()}
    model.zero_grad()

    speed_up(model, torch.float64, keep=True)
    for shared in (True, False):
        pack = make_pack(rows, shared_prefix=shared)
        loss = fast_loss(base)(pack)
        loss.backward()
        # The families' own norms and rotary tables round to fp32 on the way, whatever the type of the weights.
        assert torch.allclose(loss, expected, rtol=1e-6)
        for name, parameter in parameters.items():
            distance = torch.linalg.vector_norm(parameter.grad - gradients[name]) / torch.linalg.vector_norm(gradients[name])
            assert distance <= 1e-5, (name, shared)
        model.zero_grad()
    assert len(make_pack(rows).input_ids) < len(make_pack(rows, shared_prefix=False).input_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_fast_path(family):
    base, model = build(family)
    said = speed_up(model, torch.float64, keep=True)
    _, path = choose_loss(base)
    assert path.startswith("flat"), path
    assert said.endswith("4 of 4 blocks"), "two layers of an attention and an MLP, all taken over"


PLAIN_STREAM = {"llama": 2, "qwen3": 2, "phi3": 2, "olmo2": 0, "gemma2": 0, "granite": 0}


@pytest.mark.parametrize(("family", "layers"), PLAIN_STREAM.items())
def test_layers_are_switched_where_the_residual_stream_is_added_plainly(family, layers):
    _, model = build(family)
    assert f" {layers} layers," in speed_up(model, torch.float64, keep=True)


def rows_of_mlps(base, pack):
    """How many tokens each layer's MLP computes in one pass over the pack."""
    seen = []
    hooks = [layer.mlp.register_forward_hook(lambda mlp, args, out: seen.append(args[0].shape[1])) for layer in base.model.layers]
    fast_loss(base)(pack)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_last_mlp_computes_only_the_tokens_that_predict_something():
    base, model = build("llama")
    speed_up(model, torch.float64, keep=True)
    pack = make_pack([[d] for d in documents()[5:7]])
    assert (len(pack.input_ids), len(pack.label_index)) == (14, 8)
    assert rows_of_mlps(base, pack) == [14, 8]


def test_the_last_mlp_computes_all_tokens_where_the_final_norm_mixes_them():
    base, model = build("llama")

    class Mixing(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) - x.mean(1, keepdim=True)

    base.model.norm = Mixing(base.model.norm)
    speed_up(model, torch.float64, keep=True)
    assert rows_of_mlps(base, make_pack([[d] for d in documents()[5:7]])) == [14, 14]


def test_the_last_mlp_computes_all_tokens_where_what_follows_wants_them_all():
    base, model = build("llama")

    class Skipping(torch.nn.Module):
        """Adds what the first layer was given."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.first = inner, None
            base.model.layers[0].register_forward_pre_hook(self.keep)

        def keep(self, layer, args):
            self.first = args[0]

        def forward(self, x):
            return self.inner(x + self.first)

    base.model.norm = Skipping(base.model.norm)
    speed_up(model, torch.float64, keep=True)
    assert rows_of_mlps(base, make_pack([[d] for d in documents()[5:7]])) == [14, 14]


def test_a_layer_that_drops_from_the_residual_stream_keeps_its_own_forward():
    base, model = build("phi3")
    for layer in base.model.layers:
        layer.resid_mlp_dropout.p = 0.1
    assert " 0 layers," in speed_up(model, torch.float64, keep=True)


def test_rounding_of_large_scores_is_not_taken_for_another_attention():
    """In bf16 scores of hundreds turn a last digit into half of the output: both are right."""
    base, model = build("llama")
    model.to(torch.bfloat16)
    for layer in base.model.layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            linear.base_layer.weight.data.mul_(8)
    assert speed_up(model, torch.bfloat16, keep=True).endswith("4 of 4 blocks")


def test_an_attention_that_clips_large_values_keeps_its_own_code():
    base, model = build("llama")
    attention = base.model.layers[1].self_attn
    original = type(attention).forward

    class Clipping(type(attention)):
        def forward(self, hidden_states, **kwargs):
            return original(self, hidden_states=hidden_states.clamp(-20, 20), **kwargs)

    attention.__class__ = Clipping
    assert speed_up(model, torch.float64, keep=True).endswith("3 of 4 blocks")


def test_an_attention_of_another_kind_keeps_its_own_code():
    base, model = build("llama")
    attention = base.model.layers[1].self_attn
    original = type(attention).forward

    class Louder(type(attention)):
        def forward(self, *args, **kwargs):
            out, weights = original(self, *args, **kwargs)
            return out * 2, weights

    attention.__class__ = Louder
    assert speed_up(model, torch.float64, keep=True).endswith("3 of 4 blocks")
    assert choose_loss(base)[1].startswith("flat")


def test_a_swapped_model_still_generates_with_a_cache():
    base, model = build("qwen3")
    ids = torch.tensor([[5, 9, 11]])
    expected = base.generate(ids, max_new_tokens=6, do_sample=False)
    speed_up(model, torch.float64, keep=True)
    assert torch.equal(base.generate(ids, max_new_tokens=6, do_sample=False), expected)


def test_a_family_the_flat_path_gets_wrong_falls_back_and_says_so():
    base, model = build("llama")
    speed_up(model, torch.float64, keep=True)

    class Odd(torch.nn.Module):
        """A norm that looks at the whole batch, so that a flat layout changes it."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) * (1 + x.shape[1] / 10)

    base.model.norm = Odd(base.model.norm)
    loss_of, path = choose_loss(base)
    assert path.startswith("padded rows")
    pack = make_pack([[d] for d in documents()])
    assert torch.equal(loss_of(pack), plain_loss(base)(pack))
