"""The loss of a pack: the decoder once over flat tokens, the last MLP and the head only where something is predicted."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.base.attention import segments_attention
from tunesmith.base.layer import labelled_states, last_layer
from tunesmith.base.self_attention import LeanAttention
from tunesmith.data.packing import Pack
from tunesmith.kernels.cross_entropy import linear_cross_entropy
from tunesmith.kernels.fused_attention import is_fused
from tunesmith.kernels.segments import Segments, segment_positions


@dataclass(frozen=True)
class PackLoss:
    """of: a pack's loss, the sum of the cross-entropies of its targets, a scalar with gradient. parts: the same in parts, of
    so many targets each. attention: a context that forward and backward must run in (backward too, since recomputed layers
    attend again). any_layout: which documents lie where is read from tensors alone, so that a captured pass serves every pack
    whose arrays have the same sizes."""

    of: Callable[[Pack], Tensor]
    parts: Callable[[Pack, Sequence[int]], list[Tensor]]
    attention: Callable[[], AbstractContextManager[None]]
    any_layout: bool = False

    def __call__(self, pack: Pack) -> Tensor:
        with self.attention():
            return self.of(pack)


def fast_loss(model: Any) -> PackLoss:
    """The fast path of a causal language model (the transformers model, adapters inside)."""
    decoder, head = model.base_model, model.get_output_embeddings()
    softcap, scale = _logit_shape(model.config)

    def labelled(pack: Pack) -> Tensor:
        ids, positions = pack.input_ids.unsqueeze(0), pack.position_ids.unsqueeze(0)
        return labelled_states(decoder, pack.label_index, input_ids=ids, position_ids=positions, segments=pack.segments)

    def loss(hidden: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, head.weight, targets, softcap=softcap, logit_scale=scale)

    return _pack_loss(labelled, loss, lambda: segments_attention(model), _attends_fused(model))


def _pack_loss(
    predicted: Callable[[Pack], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    attention: Callable[[], AbstractContextManager[None]],
    any_layout: bool = False,
) -> PackLoss:
    """predicted: what is known at every labelled position of a pack, ``[N, …]``; loss: its sum over such and their targets."""

    def parts(pack: Pack, counts: Sequence[int]) -> list[Tensor]:
        pairs = zip(predicted(pack).split(list(counts)), pack.targets.split(list(counts)))
        return [loss(some, targets) for some, targets in pairs]

    return PackLoss(lambda pack: loss(predicted(pack), pack.targets), parts, attention, any_layout)


def _attends_fused(model: Any) -> bool:
    """Whether the attention of every layer runs in the fused kernels of a GPU."""
    ours = [module for module in model.modules() if isinstance(module, LeanAttention)]
    weight = model.get_input_embeddings().weight
    every = len(ours) == model.config.get_text_config().num_hidden_layers
    return every and all(is_fused(weight.new_empty(0, 1, module.call.head_dim)) for module in ours)


def plain_loss(model: Any) -> PackLoss:
    """The plain twin: documents as padded rows through the model's own forward, attention and head."""

    def picked(pack: Pack) -> Tensor:
        rows, places = _padded(pack)
        # Padding is on the right and attention is causal: no token sees any of it, so no mask is needed.
        logits = model(input_ids=rows.clamp(min=0), use_cache=False).logits
        return logits[places[:, 0], places[:, 1]]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.nn.functional.cross_entropy(wide, targets, reduction="sum")

    return _pack_loss(picked, loss, nullcontext)


def choose_loss(model: Any) -> tuple[PackLoss, str]:
    """The fast path if it gives this model's own losses, else the plain one; and what was chosen, with the reason."""
    fast, plain = fast_loss(model), plain_loss(model)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        return plain, "padded rows: the output head has a bias"
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return plain, "padded rows: attention in chunks"
    if getattr(model.config.get_text_config(), "attention_dropout", None):
        return plain, "padded rows: attention has dropout"
    pack = _probe(model)
    with torch.no_grad():
        expected = float(plain(pack))
        try:
            got = float(fast(pack))
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            return plain, f"padded rows through transformers' own attention ({error})"
    # Two ways to sum the same numbers: equal but for rounding, or the family does something the fast path does not know.
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 2e-2
    if abs(got - expected) <= tolerance * abs(expected):
        last = last_layer(model.base_model)
        parts = "last MLP and head" if last is not None and last.picks_rows else "head"
        return fast, f"flat segments, {parts} at labelled positions only"
    return plain, f"padded rows: the flat path gives a loss of {got:.4f} for this family where its own is {expected:.4f}"


def _logit_shape(config: Any) -> tuple[float, float]:
    """(softcap, scale) of a family's logits: Gemma 2 caps them, Granite divides, Cohere multiplies."""
    text = config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None) or 0.0
    scale = getattr(text, "logit_scale", None) or 1.0
    divisor = getattr(text, "logits_scaling", None) or 1.0
    return softcap, scale / divisor


def _probe(model: Any) -> Pack:
    """Two short documents that continue one prefix, of fixed token ids."""
    vocabulary = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    segments = Segments.of([3, 4, 5], [-1, 0, 0], device)
    ids = torch.tensor([(7 * i + 3) % vocabulary for i in range(12)], device=device)
    index = torch.tensor([1, 4, 6, 8, 11], device=device)
    targets = torch.tensor([(11 * i + 5) % vocabulary for i in range(5)], device=device)
    return Pack(ids, segment_positions(segments).to(device), index, targets, segments, 15, ("probe", "probe"))


def _padded(pack: Pack) -> tuple[Tensor, Tensor]:
    """Token ids ``[n, L]``, right-padded with -1, one document a row with its prefix; and (row, column) ``[N, 2]`` of
    each labelled position (one of a shared prefix is taken from the first document that continues it)."""
    lengths, parents = pack.segments.lengths, pack.segments.parents
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    spans = [pack.input_ids[starts[i] : starts[i + 1]] for i in range(len(lengths))]
    leaves = [i for i in range(len(lengths)) if i not in set(parents)]
    rows = [torch.cat([spans[parents[i]], spans[i]]) if parents[i] >= 0 else spans[i] for i in leaves]
    row_of = {segment: row for row, segment in reversed(list(enumerate(leaves)))}
    for row, segment in reversed(list(enumerate(leaves))):
        if parents[segment] >= 0:
            row_of[parents[segment]] = row
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).tolist()
    columns = pack.position_ids.tolist()
    places = [(row_of[owner[p]], columns[p]) for p in pack.label_index.tolist()]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return padded, torch.tensor(places, device=pack.input_ids.device)
