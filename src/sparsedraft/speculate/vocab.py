"""Tokenizers of target and drafter: today they must be the same; text-level and intersection routes come with UAG."""

from transformers import PreTrainedTokenizerBase

from sparsedraft.errors import UserError


def check_same_tokenizer(
    target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase, target_name: str, drafter_name: str
) -> None:
    """Raise UserError unless both have the same tokens under the same ids."""
    p, q = target.get_vocab(), drafter.get_vocab()
    if p == q:
        return
    if len(p) != len(q):
        difference = f"{len(p)} tokens against {len(q)}"
    else:
        token = min((t for t in p if q.get(t) != p[t]), key=lambda t: p[t])
        difference = f"first at id {p[token]}, {token!r}"
    raise UserError(
        f"target {target_name} and drafter {drafter_name} have different tokenizers ({difference}): "
        "choose models of one family, drafting across tokenizers is not supported yet."
    )
