"""YAML files that people write: plain data without tags or double keys, and no more of it than a person writes."""

from pathlib import Path
from typing import Any

import yaml

from sparsedraft.base.errors import UserError

LARGEST = 1 << 20  # bytes
MOST = 100_000  # values, with every alias written out
DEEPEST = 50  # levels


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes a double key as an error."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name = loader.construct_object(key)
        if isinstance(name, list | dict):
            raise yaml.constructor.ConstructorError(None, None, "a key is no plain value", key.start_mark)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {name!r} stands twice", key.start_mark)
        seen.add(name)
    loader.flatten_mapping(node)
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> Any:
    """What the YAML file holds; UserError, in one sentence, where it cannot be read as plain data."""
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"{path} is not readable YAML ({size:,} bytes are more than {LARGEST:,}).")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable YAML ({' '.join(str(error).split())}).") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """What the YAML `text` holds; `name` is what the sentence of a UserError calls it."""
    try:
        node = yaml.compose(text, _Loader)
        if node is not None and _size(node, {}, 0) > MOST:
            raise UserError(f"{name} is not readable YAML (its aliases stand for more than {MOST:,} values).")
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{name} is not readable YAML (nested too deep).") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{name} is not readable YAML ({' '.join(str(error).split())[:300]}).") from None


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values `node` stands for with every alias written out; RecursionError where it contains itself."""
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(part, known, depth + 1) for part in parts)
    return known[id(node)]
