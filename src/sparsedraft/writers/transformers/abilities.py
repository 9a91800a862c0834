"""What a model's family lets us do, found out by trying it on a tiny model of the same code (see `shrink`).

Families differ in how they keep what they have read (keys and values, windows and chunks of them, recurrent states) and
in which masks and positions they obey. Their configs have many names for this, so a trial looks at none of them. It
runs our code on texts that are longer than any window of the tiny model, and compares the logits with those of
transformers' own loop (see `writers.transformers.alone`).
"""

import random
from collections.abc import Callable, Iterator
from functools import cached_property
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.decoder import embedding_rows
from sparsedraft.models.miniature import build, shrunk, transformers_class
from sparsedraft.text.bins import fill
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.sample import Sample
from sparsedraft.writers.protocol.backend import Backend
from sparsedraft.writers.protocol.requests import Request
from sparsedraft.writers.transformers.alone import AloneBackend
from sparsedraft.writers.transformers.backend import TransformersBackend
from sparsedraft.writers.transformers.padded import complete_padded
from sparsedraft.writers.transformers.switching import SwitchingBackend, reads_again, switch_of

FAR, NEAR, MORE = 29, 19, 5  # tokens of a trial's texts: three windows and two, each with a part of another; and drafts
LIKE = 0.05  # of the logits' spread: how far apart two ways of computing them may lie
LOCAL = ("window", "chunk", "local", "block")  # in the names of what keeps a model from seeing all of a text
# what a family raises for something that it cannot do
UNABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


class Abilities:
    """What models like `model` can do. Each ability is tried when it is first used. None: nothing is known to work."""

    def __init__(self, model: PreTrainedModel | None) -> None:
        self.model = model

    @cached_property
    def takes_back(self) -> bool:
        """Whether tokens can be appended in any number and taken back: what drafting and verifying need."""
        return self._try(_takes_back)

    @cached_property
    def takes_masks(self) -> bool:
        """Whether it obeys our masks and positions, too: rows of different lengths, and trees of drafts."""
        return self.takes_back and self._try(_takes_masks)

    @cached_property
    def pads(self) -> bool:
        """Whether rows that are padded on the left, join and leave are each what they are alone."""
        return self._try(_pads)

    @cached_property
    def packs(self) -> bool:
        """Whether samples that are packed in one row do not see each other."""
        return self._try(_packs)

    @cached_property
    def shows_head(self) -> bool:
        """Whether the logits are what the head returns, for the places that are asked for: no cap or scale follows."""
        return self._try(_shows_head)

    def _try(self, trial: Callable[[PreTrainedModel], bool]) -> bool:
        if self.model is None:
            return False
        try:
            with torch.no_grad():
                return trial(self.model)
        except UNABLE:
            return False


_known: dict[tuple[type[PreTrainedModel], str], Abilities] = {}


def abilities(model: PreTrainedModel) -> Abilities:
    """Those of `model`, whose weights do not matter (it may lie on the meta device).

    A family that cannot be built small is tried as it is, where nothing in its config can be longer than the trials.
    """
    kind, config = transformers_class(model), model.config
    try:
        small = shrunk(config)
        key = kind, f"{config._attn_implementation} {small.to_json_string(use_diff=False)}"
        if key not in _known:
            _known[key] = Abilities(build(kind, small))
    except Exception:  # whatever sizes that do not fit together can break inside a library
        sees_all = not any(value > NEAR for value in _local(config.to_dict()))
        return Abilities(model if sees_all and model.device.type != "meta" else None)
    return _known[key]


def _local(fields: dict[str, Any]) -> Iterator[int]:
    """The numbers in a config whose names say that they bound how far a layer sees."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _local(value)
        elif any(word in str(name) for word in LOCAL):
            yield from (v for v in (value if isinstance(value, list) else [value]) if type(v) is int)


def backend_of(model: PreTrainedModel, rows: int = 1) -> Backend:
    """The Backend that runs `model` as transformers would; UserError for several rows of one that runs alone only."""
    able = abilities(model)
    if rows > 1 and not able.takes_masks:
        raise UserError("one of the models takes no attention masks: decode one prompt at a time.")
    if not able.takes_back:
        return AloneBackend(model)
    inner, at = TransformersBackend(model, rows), switch_of(model)
    return inner if at is None else SwitchingBackend(inner, at, reads_again(model, at))


def reads_whole(model: PreTrainedModel) -> bool:
    """Whether one pass over a text gives what reading it step by step does."""
    return abilities(model).takes_back and switch_of(model) is None


def _text(model: PreTrainedModel, length: int) -> list[int]:
    draw, rows = random.Random(length), embedding_rows(model)
    return [draw.randrange(min(3, rows - 1), rows) for _ in range(length)]


def _alone(model: PreTrainedModel, ids: list[int], n: int) -> Tensor:
    """Logits [n, V] after the last n of `ids`, by transformers' own loop."""
    return AloneBackend(model).forward([ids], [n])[0]


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Whether they are the same but for rounding. NaN counts as alike: decoding reports where it comes from."""
    if expected.isnan().any():
        return True
    inside = expected.isfinite()  # a trimmed head says -inf of what it has left out
    if not torch.equal(inside, found.isfinite()):
        return False
    found, expected = found[inside].float(), expected[inside].float()
    return bool((found - expected).abs().max() < LIKE * expected.std())


def _takes_back(model: PreTrainedModel) -> bool:
    ids, wrong = _text(model, FAR + MORE), _text(model, NEAR)[-MORE:]
    expected = _alone(model, ids, MORE + 1)
    at_once = TransformersBackend(model).forward([ids], [MORE + 1])[0]
    backend, end = TransformersBackend(model), len(ids) - MORE - 1
    backend.forward([ids[:end]], [1])
    backend.forward([wrong], [MORE])
    backend.rollback([end])
    behind = backend.forward([ids[end:]], [MORE + 1])[0]
    backend.rollback([NEAR])  # further than any window reaches
    backend.forward([ids[NEAR:end]], [1])
    each = torch.cat([backend.forward([[token]], [1])[0] for token in ids[end:]])
    return all(_alike(found, expected) for found in (at_once, behind, each))


def _takes_masks(model: PreTrainedModel) -> bool:
    texts = [_text(model, FAR + MORE), _text(model, NEAR)]
    expected = [_alone(model, texts[0], MORE), _alone(model, texts[1], 2)]
    both = TransformersBackend(model, 2)
    both.forward([texts[0][:FAR], texts[1][:-2]], [1, 1])
    if not all(map(_alike, both.forward([texts[0][FAR:], texts[1][-2:]], [MORE, 2]), expected)):
        return False
    one, (start, drafts) = TransformersBackend(model), (texts[0][:FAR], _text(model, NEAR)[-8:])
    one.forward([start], [1])
    nodes = one.forward_tree(drafts, [*[-1] * 7, 0])  # the last one's slot is far from its position
    one.keep(FAR, [0, 7])
    after = one.forward([drafts[:1]], [1])[0]
    branch = _alone(model, [*start, drafts[0], drafts[7], drafts[0]], 3)
    return _alike(nodes[7:], branch[1:2]) and _alike(after, branch[2:])


def _pads(model: PreTrainedModel) -> bool:
    lengths = {FAR: 6, NEAR: 3, 11: 4}
    k = min(20, embedding_rows(model))
    requests = [Request(str(n), _text(model, n), new) for n, new in lengths.items()]
    for written in complete_padded(model, requests, 2, Sampling(), frozenset(), k):
        ids = [*_text(model, int(written.id)), *written.token_ids]
        expected = _alone(model, ids, len(written.token_ids) + 1)[:-1].float().log_softmax(-1)
        at = torch.tensor(written.topk_ids, device=expected.device)
        if not _alike(torch.tensor(written.topk_logprobs, device=expected.device), expected.gather(-1, at)):
            return False
    return True


def _packs(model: PreTrainedModel) -> bool:
    """Most families make the block-diagonal mask from the position ids; some (OPT) ignore them, and would leak."""
    samples = [Sample(str(n), _text(model, n)[:-MORE], _text(model, n)[-MORE:]) for n in (FAR, NEAR)]
    training = model.training
    model.eval()
    packed = answer_logits(model, fill(samples).to(model.device)).split(MORE)
    single = [answer_logits(model, fill([sample]).to(model.device)) for sample in samples]
    model.train(training)
    return all(map(_alike, packed, single))


def _shows_head(model: PreTrainedModel) -> bool:
    row = fill([Sample("", _text(model, NEAR), _text(model, MORE))]).to(model.device)
    head, seen = model.get_output_embeddings(), []
    answer = torch.linspace(-90, 90, MORE, device=model.device).view(1, MORE, 1)

    def returned(self: torch.nn.Module, hidden: Tensor) -> Tensor:
        seen.append(hidden.shape[:-1])
        return answer

    head.forward = MethodType(returned, head)
    try:
        return torch.equal(answer_logits(model, row), answer[0]) and seen == [answer.shape[:-1]]
    finally:
        del head.forward
