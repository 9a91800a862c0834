"""What target and drafter would cost in other bits and patterns: products of random weights of their shapes.

Nothing is packed or pruned for it. What such a drafter's MAL would be is not known before it is made; how much of the
given drafter's MAL it must keep to be worth it, is.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedraft.models import checkpoint, claims
from sparsedraft.native.extension import extension
from sparsedraft.native.layout_choice import EXTENSION_NAMES, choose
from sparsedraft.native.packed_folder import is_packed, pattern_of, read_header
from sparsedraft.native.random_layers import RandomLayers, shapes_of_a_layer

BITS = "int8", "int4"
PATTERNS = {"dense": 1.0, "2:4": 0.5, "4:8": 0.5, "2:8": 0.25}  # and the share of weights that stays
LEAST, TURNS = 3 << 27, 5  # bytes of weights that are walked through, so that no cache holds them; timings of each


@dataclass(frozen=True)
class Kind:
    """How decoder linears are stored."""

    pattern: str
    values: str  # int8, int4, bf16, f16 or f32

    def __str__(self) -> str:
        return f"{self.pattern} {self.values}"


@dataclass(frozen=True)
class Products:
    """Seconds of the products of one token, and of several, with all decoder linears of a kind."""

    one: float
    several: float


def kind_of(folder: Path) -> Kind:
    """The kind that most decoder linears of a checkpoint have; a plain one runs in the type of its weights."""
    if is_packed(folder):
        entries = [entry for name, entry in read_header(folder).items() if name.endswith("_proj")]
        values = statistics.mode(entry.values for entry in entries) if entries else "bf16"
        return Kind(pattern_of(folder), values)
    claim = claims.claim_of(folder)
    dtype = str(checkpoint.read_config(folder).get_text_config().dtype).removeprefix("torch.")
    values = {"float16": "f16", "bfloat16": "bf16"}.get(dtype, "f32")
    # a plain checkpoint keeps its zeros, and the engine leaves them out
    return Kind(claim["pattern"] if claim else "dense", values)


def products(folder: Path, kinds: Sequence[Kind], several: int, threads: int) -> dict[Kind, Products]:
    """The products of each kind in the shapes of the model in `folder`; `several`: how many tokens that means.

    Each kind takes turns with the first one, and two are in memory at a time.
    """
    config = checkpoint.read_config(folder)
    shapes, layers = shapes_of_a_layer(config), int(config.get_text_config().num_hidden_layers)
    size = sum(rows * columns for rows, columns in shapes)
    base = RandomLayers(shapes, max(2, min(layers, LEAST // size)))
    pool, share = extension().Pool(threads), layers / base.layers
    first = _matrices(base, kinds[0])

    def seconds(matrices: Sequence[Any], tokens: int) -> float:
        return float(extension().time_multiply(matrices, tokens, 1, pool)[0]) * share

    own = {tokens: statistics.median(seconds(first, tokens) for _ in range(TURNS)) for tokens in (1, several)}
    found = {kinds[0]: Products(own[1], own[several])}
    for kind in kinds[1:]:
        matrices = _matrices(base, kind)
        seconds(matrices, 1)  # warm
        ratios = {
            tokens: statistics.median(seconds(matrices, tokens) / seconds(first, tokens) for _ in range(TURNS))
            for tokens in (1, several)
        }
        found[kind] = Products(own[1] * ratios[1], own[several] * ratios[several])
    return found


def _matrices(base: RandomLayers, kind: Kind) -> list[Any]:
    density = PATTERNS[kind.pattern]
    layout = choose(kind.pattern, kind.values, base.shapes[0][1], density)
    return base.matrices(EXTENSION_NAMES.get(kind.values, kind.values), layout.name, layout.n, density)


def known(kind: Kind) -> bool:
    """Whether `products` can time it."""
    return kind.pattern in PATTERNS and kind.values in ("int8", "int4", "bf16", "f16", "f32")


def instead(measured: float, own: Products, other: Products, tokens: int = 1) -> float:
    """Seconds that a pass of `measured` seconds would take with products of another kind: all else stays.

    `tokens`: of that pass; 1, or more, where the products of several count.
    """
    before, after = (p.one if tokens == 1 else p.several for p in (own, other))
    return max(after, measured - before + after)


def others(kind: Kind, patterns: Mapping[str, float] = PATTERNS) -> list[Kind]:
    """`kind`, and what could be had instead of it, in each of BITS."""
    return [kind, *(other for p in patterns for b in BITS if (other := Kind(p, b)) != kind)]
