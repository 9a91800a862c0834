"""Packed folders inside vLLM: a plugin that vLLM finds by its entry point, in whichever process it starts.

`Proposer` is the class that drafts by our own engine: proposer.py, as settings.py says, with the models of models.py;
drafting.py asks for drafts and tells the policy what became of them, for the texts that requests.py recognises.

Start reading at config.py, which vLLM asks how each layer of a packed model is to be run; layers.py runs them, by the
one operator of multiply.py; folder.py knows what the folder holds, and threads.py on whose threads it is computed.
"""

from typing import Any


def register() -> None:
    """Tell vLLM how packed folders are run. It can be called any number of times, and needs vLLM."""
    from sparsedraft.integrations.vllm.config import register

    register()


def __getattr__(name: str) -> Any:
    if name == "Proposer":
        from sparsedraft.integrations.vllm.proposer import Proposer

        return Proposer
    raise AttributeError(f"{__name__} has no {name}")
