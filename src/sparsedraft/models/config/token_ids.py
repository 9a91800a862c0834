"""Token ids in the fields of config files."""


def token_ids(value: object) -> list[int]:
    """The ids in a field that holds one, a list of them, or nothing; values that cannot be ids are left out."""
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
