"""Which JSON Schemas are held exactly, and how they are told to llguidance; all others are refused.

llguidance refuses most of what it cannot hold. The rest is seen to here: `x-guidance` would let a schema switch the
refusals off; names that it does not know it ignores, which is right for annotations and wrong for a slip; names may
come twice in an object, of which a reader counts one; its dates know no leap years; and its patterns are Rust's.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from sparsedraft.serve import patterns

BYTES, DEPTH = 64 << 10, 64  # of a schema as JSON, and how deep its parts lie in each other
FLEXIBLE = r"[ \n\t]{1,32}"  # between the parts of JSON: bounded, so that no answer is of spaces alone
OPTIONS = {
    "whitespace_pattern": FLEXIBLE,
    "json_allowed_escapes": '"\\bfnrt',  # without \u: a name has one spelling, so that none is two properties' own
    "lenient": False,
    "coerce_one_of": False,
}

LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
SINGLE = ("additionalProperties", "additionalItems", "items")
VALUES = (
    "type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems", "minLength",
    "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "$ref", "$anchor",
)  # fmt: skip
JOINING = frozenset(
    ("anyOf", "oneOf", "$ref", "pattern", "format", "patternProperties")
)  # two of them are both to hold
HELD = frozenset((*LISTS, *NAMED, *SINGLE, *VALUES))
ANNOTATIONS = frozenset((
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id",
    "contentMediaType", "contentEncoding", "contentSchema", "discriminator",
))  # fmt: skip
EMPTY = {"uniqueItems": False, "minContains": 0, "unevaluatedProperties": True, "unevaluatedItems": True}  # ask nothing

YEAR, LEAP = "[1-9][0-9]{3}", "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
DATE = (
    f"(?:{YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{LEAP}-02-29)"
)
HOUR = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
TIME = rf"{HOUR}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{HOUR})"  # leap seconds are left out
DATES = {"date": f"^{DATE}$", "time": f"^{TIME}$", "date-time": f"^{DATE}T{TIME}$"}
FORMATS = frozenset(("duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
HOSTNAME = 253  # characters of the longest
JOINED = 16  # patterns where some may be joined: the engine takes seconds for 20 at one place, and hours for 30
STEP = 1000  # the largest divisor: the engine takes seconds to compile one of a million


class Unheld(ValueError):
    """A schema that cannot be held: one sentence that names the keyword."""


def prepared(schema: Any, field: str) -> dict[str, Any]:
    """`schema` as llguidance holds it exactly. Unheld, in whose sentence it is called `field`."""
    if not isinstance(schema, Mapping):
        raise Unheld(f"{field} is no object: send a JSON Schema.")
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except RecursionError:
        size = BYTES + 1
    except ValueError:  # Python reads NaN and Infinity as numbers
        raise Unheld(f"{field} holds a number that JSON does not have: send a JSON Schema.") from None
    if size > BYTES:
        raise Unheld(f"{field} has more than {BYTES >> 10} KiB, or is nested too deep: send a smaller schema.")
    walk = _Walk(field)
    found = walk.part(schema, 0)
    if walk.joins and len(walk.patterns) > JOINED:
        told = f"{len(walk.patterns)} patterns, and parts that are joined by allOf or beside each other"
        raise Unheld(f"{field} has {told}: leave so many out that {JOINED} are left.")
    return {**found, "x-guidance": OPTIONS}


class _Walk:
    """Goes through a schema, whose parts it writes anew."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.patterns: set[str] = set()  # all that were found
        self.joins = False  # whether one text may have to satisfy several parts

    def part(self, schema: Any, depth: int) -> Any:
        if depth > DEPTH:
            raise Unheld(f"{self.field} is nested more than {DEPTH} deep: send a flatter schema.")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise Unheld(f"{self.field} has a part that is no schema ({json.dumps(schema)[:40]}): mend it.")
        found: dict[str, Any] = {}
        for name, value in schema.items():
            if (name in ANNOTATIONS and not (name == "$id" and depth)) or (name in EMPTY and value == EMPTY[name]):
                found |= {name: value} if name == "$schema" and not depth else {}
            elif name not in HELD:
                raise self.unheld(name)
            else:
                found[name] = self._value(name, value, depth + 1)
        self._check_count(found)
        self.joins |= "allOf" in found or len(JOINING & found.keys()) > 1
        return self._formatted(found)

    def unheld(self, name: str, why: str = "") -> Unheld:
        """The refusal of a keyword."""
        return Unheld(f"{self.field}: the keyword {name[:80]!r} cannot be enforced here{why}: leave it out.")

    def _value(self, name: str, value: Any, depth: int) -> Any:
        if name in NAMED and isinstance(value, Mapping):
            rename: Callable[[str], str] = self._pattern if name == "patternProperties" else str
            return {rename(key): self.part(part, depth) for key, part in value.items()}
        if (name in LISTS or name == "items") and isinstance(value, list):
            return [self.part(part, depth) for part in value]
        if name in SINGLE:
            return self.part(value, depth)
        if name == "pattern":
            return self._pattern(value)
        if name == "multipleOf" and (not isinstance(value, int | float) or value > STEP):
            raise self.unheld(name, f" for a number above {STEP}")
        if name == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise self.unheld(name, " to another document")
        return value

    def _pattern(self, value: Any) -> str:
        self.patterns.add(str(value))
        try:
            return patterns.rust(str(value))
        except patterns.Unknown as error:
            told = f"the pattern {str(value)[:80]!r} cannot be enforced here ({error} supported)"
            raise Unheld(f"{self.field}: {told}: simplify it.") from None

    def _check_count(self, schema: Mapping[str, Any]) -> None:
        """Names that are free may come twice in a text, and count once."""
        least = schema.get("minProperties", 0)
        if least == 0:
            return
        named = schema.get("additionalProperties") is False and "patternProperties" not in schema
        required = schema.get("required", [])
        if not named and not (isinstance(required, list) and least in range(len(set(map(str, required))) + 1)):
            raise self.unheld("minProperties", " where names are free and fewer are required")

    def _formatted(self, schema: dict[str, Any]) -> dict[str, Any]:
        """`format` as a pattern of its own where the engine's is too wide."""
        kind = schema.get("format")
        if kind is None:
            return schema
        if kind in DATES:
            rest = {name: value for name, value in schema.items() if name != "format"}
            pattern = {"pattern": patterns.rust(DATES[kind])}
            return {**rest, **pattern} if "pattern" not in rest else {"allOf": [rest, pattern]}
        if kind not in FORMATS:
            raise Unheld(f"{self.field}: the format {str(kind)[:80]!r} cannot be enforced here: leave it out.")
        if kind == "hostname":
            longest = schema.get("maxLength", HOSTNAME)
            return {**schema, "maxLength": min(longest, HOSTNAME) if isinstance(longest, int) else longest}
        return schema
