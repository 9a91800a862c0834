"""How much memory pruning takes: a formula from a model's shapes, checked by `benchmarks/pruning.py`."""

from torch import nn

from sparsedraft.layerwise.sequential import BATCH
from sparsedraft.models.decoder import linears_of, named_layers
from sparsedraft.models.shards import SHARD

PROCESS = 560 << 20  # bytes of Python, torch, transformers and a tokenizer: measured, CPU build of torch 2.13


def distinct_inputs(layer: nn.Module, hidden: int) -> list[int]:
    """Widths of the inputs that have a Hessian of their own in a layer.

    Linears of one width mostly share their input (q, k and v; gate and up), so they are each width once, and the hidden
    width twice more (attention's output projection, and the MLP beside the attention).
    """
    return [*sorted({linear.in_features for linear in linears_of(layer).values()}), hidden, hidden]


def peak(model: nn.Module, width: int, stored: int = 2, method: str = "sparsegpt") -> int:
    """Peak resident bytes of `prune` for `model` (no weights needed), `width` bytes a number in arithmetic.

    PROCESS + the largest of three phases that follow each other, for weights of `stored` bytes each:

    front    width · F + stored · F_max                  everything but layers and head, F weights, F_max the largest
    layer    width · L + 4 Σ n² + max(pass, solve)       L weights of a layer, n the widths of its distinct inputs
      pass   BATCH · width · (4 · widest + 8 · hidden)   what one batch leaves on its way through the layer
      solve  4 · (2 n_max² + 6 · W_max)                  the factor of the inverse, copies of the largest weight W_max
             4 · (4 n_max² + 9 · W_max) of ALPS          the scaled Hessian, its factor; two copies, a multiplier
    write    min(SHARD, stored · parameters)             an output shard while it is mapped

    The number of calibration tokens does not matter: their hidden states lie in a file.
    """
    _, layers = named_layers(model)
    hidden = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    layer = max(layers, key=lambda layer: sum(p.numel() for p in layer.parameters()))
    inside = {id(p) for p in layers.parameters()}
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    tied = model.config.get_text_config().tie_word_embeddings  # type: ignore[union-attr, operator]
    outside = [p.numel() for p in model.parameters() if id(p) not in inside and p is not head]
    if tied and model.get_input_embeddings().weight is head:  # type: ignore[operator]
        outside.append(head.numel())
    linears = list(linears_of(layer).values())
    widths = distinct_inputs(layer, hidden)
    largest = max(linear.weight.numel() for linear in linears)
    widest = max(max(linear.in_features, linear.out_features) for linear in linears)
    front = width * sum(outside) + stored * max(outside)
    through = BATCH * width * (4 * widest + 8 * hidden)
    squares, copies = (4, 9) if method == "alps" else (2, 6)
    solve = 4 * (squares * max(widths) ** 2 + copies * largest)
    weights = width * sum(p.numel() for p in layer.parameters())
    whole = sum(outside) + sum(p.numel() for p in layers.parameters()) + (0 if tied else head.numel())
    return PROCESS + max(
        front, weights + 4 * sum(n * n for n in widths) + max(through, solve), min(SHARD, stored * whole)
    )
