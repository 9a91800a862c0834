"""Evaluations without their times, to be compared."""


def timeless(drafters: list[dict]) -> list[dict]:
    """Without what only a clock can say."""

    def plain(found: dict[str, dict]) -> dict[str, dict]:
        return {k: {name: v for name, v in x.items() if name not in ("measured", "speedup")} for k, x in found.items()}

    return [{**d, "k": plain(d["k"]), "by_category": plain(d["by_category"])} for d in drafters]
