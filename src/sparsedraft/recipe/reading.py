"""Reading and writing recipes: YAML with dotted overrides; the unknown and impossible are errors of one sentence."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from sparsedraft.base.errors import UserError
from sparsedraft.base.options import in_words
from sparsedraft.base.yamlfiles import read_yaml
from sparsedraft.recipe.options import check_recipe
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Distill, Drafter, Eval, Finetune, Speed
from sparsedraft.stages.distill.options import Rules
from sparsedraft.stages.prune.options import DropLayersSettings, PruneSettings
from sparsedraft.writers.server.secret import shown


def read(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `section.field=value` overrides applied.

    Raises UserError in one sentence that names the key, the value and the mend.
    """
    check_recipe(path)
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override '{override}' is not of the form section.field=value.")
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise UserError(f"recipe {path} is not a mapping: it starts with 'target: ...'.")
    if odd := [key for key in document if not isinstance(key, str)]:
        raise UserError(f"recipe {path} has the key {odd[0]!r}, which is no name: take it out.")
    try:
        base = OmegaConf.load(path)  # whose 1e-4 is a number
        tree = OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides)))
        data = OmegaConf.to_container(tree, resolve=True)
    except TypeError:
        raise UserError(
            f"override {' '.join(overrides)}: a list such as drafters cannot be changed item by item; edit the file."
        ) from None
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"recipe {path} is not readable YAML ({' '.join(str(error).split())[:300]}).") from None
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"recipe {path}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    """The first complaint of pydantic as one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "recipe"
    if first["type"] == "extra_forbidden":
        keys = _known_keys()
        near = difflib.get_close_matches(str(first["loc"][-1]), keys, n=1)
        return f"{where} is not a known key" + (f"; did you mean {keys[near[0]]}?" if near else "; take it out.")
    if first["type"] == "missing":
        return f"{where} is missing; set it."
    if first["type"] == "value_error":
        plain = re.sub(r"<(\w+)>", r"\1", first["msg"].removeprefix("Value error, ")).rstrip(".")
        return f"{where}: {plain}."
    return f"{where} = {first['input']!r} is not possible: {in_words(first)}."


def _known_keys() -> dict[str, str]:
    """The keys of all sections, and how each is written in its section."""
    sections = (Recipe, Distill, PruneSettings, DropLayersSettings, Finetune, Drafter, Eval, Speed)
    keys = {name: f"rules.{name}" for name in Rules.model_fields}
    return keys | {name: name for section in sections for name in section.model_fields}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `read` reads back, but for passwords and keys in the addresses of servers."""
    plain = recipe.model_dump(mode="json")
    for section in plain.values():
        if isinstance(section, dict) and section.get("url"):
            section["url"] = shown(section["url"])
    return OmegaConf.to_yaml(OmegaConf.create(plain))
