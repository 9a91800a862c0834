"""A line of the plan."""

from typing import Any


def line(name: str, kind: str, tokens: int, memory: float, flops: float, disk: float) -> dict[str, Any]:
    """The stage called `name`; its work is of a `kind` in EFFICIENCY."""
    sizes = {"memory_bytes": int(memory), "flops": flops, "disk_bytes": int(disk)}
    return {"stage": name, "kind": kind, "tokens": tokens, **sizes}
