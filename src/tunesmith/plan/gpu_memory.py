"""Bytes a step takes on a GPU: what the lean path stores, saves and holds for a moment, tensor by tensor.

Legend: T flat tokens of a micro-batch, N labels, H hidden size, Q and V widths of all query and of all key heads, F inner
width of the MLP, e bytes of the compute type, L layers.
"""

from tunesmith.base.linear import BLOCK_ELEMENTS
from tunesmith.kernels.cross_entropy import CHUNK_ELEMENTS
from tunesmith.kernels.factors import room
from tunesmith.plan.memory import Memory, Shape, constants_bytes, footprint
from tunesmith.plan.way import Way
from tunesmith.recipe import Recipe

WORKSPACE = 3 * int(33.5 * 2**20)
"""cuBLAS keeps 32 MB and a little more for each stream it was used on, and for a captured graph."""
SLACK = 1.01
"""Rounding of blocks, the allocator's own tables, small temporaries."""


def predict_gpu_memory(
    shape: Shape, recipe: Recipe, tokens: int, labels: int, element_bytes: int, way: Way, rotates_inside: bool = False
) -> Memory:
    """Memory of a step over micro-batches of at most ``tokens`` flat tokens with ``labels`` targets.

    Args:
        rotates_inside: the attention kernels rotate queries and keys as they read them (short documents on Hopper), so that
            no rotated copy is kept.
    """
    e = element_bytes
    stored = footprint(shape, 4 if recipe.load_in_4bit else 8 if recipe.load_in_8bit else 0, e) + constants_bytes(shape, recipe)
    if way.stream:
        packed = shape.linear_weights // 2 + constants_bytes(shape, recipe)
        stored += -packed + 2 * (packed // shape.layers + 2**16) - shape.embedding * e
    members = max(1, min(3, len(shape.linears) // shape.layers - 3))  # q, k and v stand together where they are three
    behind = room(members * recipe.lora_r) * sum(out for _, _, out in shape.linears) * e
    kept = shape.linear_weights * e + behind if way.keep and recipe.load_in_4bit else 0
    stored += behind if way.keep and not kept else 0  # such weights are laid out anew, in the place of the loaded ones
    layer = _saved_by_a_layer(shape, recipe, tokens, e, rotates_inside)
    inputs = tokens * shape.hidden * e
    loss, backward = _around_the_loss(shape, tokens, labels, e), _backward_of_a_layer(shape, tokens, e, way)
    if way.recompute:  # the input of a layer is what was kept of it; on the host, it, its gradient and the next one are here
        held = inputs * (3 if way.host_activations else shape.layers)
        activations = held + max(loss, layer + backward)
    else:
        activations = layer * shape.layers + max(loss, backward)
    activations += 8 * tokens * shape.rotary_width
    if way.host_activations:  # nothing is freed on the way back to the first layer, while gradients become more
        activations += 4 * _left_to_autograd(shape, recipe, members)
    return Memory(
        stored=int(stored * SLACK),
        kept=kept,
        adapter=_adapter(shape, recipe, e),
        activations=int((activations + WORKSPACE) * SLACK),
    )


def _adapter(shape: Shape, recipe: Recipe, e: int) -> int:
    """fp32 weights, the sum of their gradients, the optimizer's state, and a copy in the compute type."""
    state = 2 if "8bit" in recipe.optim else 8
    return _trained(shape, recipe) * (4 + 4 + state + (e if e < 4 else 0))


def _left_to_autograd(shape: Shape, recipe: Recipe, members: int) -> int:
    """Elements of gradients that are not added to their sum as they are made: the A of linears that stand together (q, k and v;
    gate and up), or all where peft's own layers compute (see `base.lean`)."""
    if recipe.use_dora or recipe.lora_bias != "none":
        return _trained(shape, recipe)
    together = recipe.lora_r * (members + 2) * shape.hidden * shape.layers if members > 1 else 0
    return min(together, _trained(shape, recipe))


def _trained(shape: Shape, recipe: Recipe) -> int:
    """Elements of the adapter."""
    return shape.trainable(recipe.lora_r, recipe.lora_target_modules)


def _saved_by_a_layer(shape: Shape, recipe: Recipe, tokens: int, e: int, rotates_inside: bool) -> int:
    """What one layer's backward needs: both residuals, both normed inputs, q, k and v, the heads' output and their log-sum-exp,
    gate and up, their product; the rank side of every linear; and rotated q and k, beside which v keeps the others alive."""
    q, v, inner, hidden = shape.query_width, shape.key_width, shape.inner, shape.hidden
    ranks = recipe.lora_r * len(shape.linears) // shape.layers
    rotated = 0 if rotates_inside else q + v
    per_token = e * (4 * hidden + 2 * q + 2 * v + rotated + 3 * inner + ranks) + 4 * (q // max(1, shape.rotary_width) + 2)
    return tokens * per_token


def _around_the_loss(shape: Shape, tokens: int, labels: int, e: int) -> int:
    """The last residual and its norm, the labelled of these and their gradient, and a chunk of logits."""
    rows = min(labels, CHUNK_ELEMENTS // shape.vocab + 1)
    return e * (2 * tokens * shape.hidden + 2 * labels * shape.hidden + rows * shape.vocab)


def _backward_of_a_layer(shape: Shape, tokens: int, e: int, way: Way) -> int:
    """The most that is alive besides what was saved: the gradients of the stream, of gate and of up (that of their product takes
    the product's place), and a block of dequantised weights."""
    widest = max(i * o for _, i, o in shape.linears)
    block = 0 if way.keep else min(widest, BLOCK_ELEMENTS) * e
    return tokens * e * (shape.hidden + 2 * shape.inner) + block
