"""How much memory fine-tuning takes: a formula from a model's shapes, checked by `benchmarks/finetuning.py`."""

from torch import nn

from sparsedraft.models.decoder import named_layers
from sparsedraft.stages.finetune.chunks import ENTRIES, PLACES
from sparsedraft.stages.finetune.options import Training
from sparsedraft.writers.transformers.abilities import abilities

PROCESS = 560 << 20  # bytes of Python, torch, transformers and a tokenizer: measured, CPU build of torch 2.13


def peak(
    model: nn.Module,
    settings: Training,
    *,
    density: float | None = None,
    halves: bool = False,
    layers: int | None = None,
    answers: float = 1.0,
    teacher: int = 0,
) -> int:
    """Peak resident bytes of `finetune` in one process for `model` (no weights needed).

    PROCESS + 4 P + 8 (T - (1 - density) L) + L + teacher + the larger or, with more than one row a step, the sum of

    gradients    4 T
    a row        S layers (4 (6 h + 5 a + 4 i)) + 4 c V + 20 e, and with a trained head 4 h V

    P parameters, T trained ones, L weights of the decoder linears, which have a mask (of a byte a weight) where
    `density` says how many of them survive; S the sequence length, h the hidden width, a that of attention, i that of
    the MLP, V the vocabulary, `answers` the share of a row's tokens whose logits are wanted, c the places of a chunk
    of them (with a trained head, all), e the logits that the loss looks at at once. In a layer and for a token, float32
    training keeps 6 h for the two norms, 5 a for queries, keys and values as attention reads them and its output, 4 i
    for the MLP. At the end there are the logits or their gradients, and what the loss makes of a part of them; a model
    that does something with its head's output makes 16 V of all. The gradient of the head, if it is trained, is added
    to that of an earlier row.
    With `halves` (bfloat16 arithmetic) the linears' inputs and outputs and the gradients of logits and of the head take
    2 bytes, and 2 (L + the head) are copies of the weights. With gradient checkpointing only h is kept
    of each layer, and all of one at a time. `layers` is their number where it differs from the model's, `teacher` the
    bytes of the target's weights. Memory that the C library's allocator cannot give back comes on top: a seventh with
    gradient checkpointing, less without.
    Mask tokens (`objective` parallel) are tokens of a row like others.
    DDP takes this in each process; FSDP2 divides weights, gradients, moments and mask by their number, and gathers the
    weights of a layer at a time.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    _, blocks = named_layers(model)
    share = (layers or len(blocks)) / len(blocks)
    count = round(share * len(blocks))
    linears = [p.numel() for p in blocks.parameters() if p.dim() >= 2]  # and experts, which have no mask
    inside = share * sum(p.numel() for p in blocks.parameters())
    outside = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in blocks.parameters())
    masked = share * sum(linears) if density is not None else 0.0
    ends = {id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings())}  # type: ignore[operator]
    trained = inside + outside - (0 if settings.train_embeddings else sum(ends.values()))
    head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]

    hidden, wide = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    attention = config.num_attention_heads * (getattr(config, "head_dim", None) or hidden // config.num_attention_heads)
    layer = 4 * 6 * hidden + (2 if halves else 4) * (5 * attention + 4 * wide)
    activations = layer + 4 * count * hidden if settings.gradient_checkpointing else count * layer
    tokens, places = 1 + answers * (settings.growth - 1), answers * settings.growth  # with mask tokens, a text's token
    row = settings.sequence_length * activations * tokens
    row += _logits(model, settings.sequence_length * places, settings.train_embeddings, 2 if halves else 4)
    gradients = 4 * trained
    standing = 4 * (inside + outside) + 8 * (trained - (1 - (density or 1)) * masked) + masked + teacher
    standing += 2 * (share * sum(linears) + head) if halves else 0
    return int(PROCESS + standing + (gradients + row if settings.rows_per_step > 1 else max(gradients, row)))


def _logits(model: nn.Module, places: float, trained: bool, width: int) -> int:
    """Bytes of the logits at `places` of a row, what the loss makes of them, and the head's gradient if it is trained.

    Logits and the head's gradient have numbers of `width` bytes.
    """
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    logits = int(places) * len(head)
    if not abilities(model).shows_head:  # type: ignore[arg-type]
        return 16 * logits + width * head.numel() * trained
    kept = logits if trained else min(logits, PLACES * len(head))
    return width * kept + 20 * min(kept, ENTRIES) + width * head.numel() * trained
