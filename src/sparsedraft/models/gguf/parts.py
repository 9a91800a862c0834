"""Split GGUF files: the parts are found beside the one that is named, and joined."""

import re
import shutil
import struct
from pathlib import Path

from sparsedraft.base.errors import UserError
from sparsedraft.models.gguf.header import Header, read_header

NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_parts(path: Path) -> list[Header]:
    """The header of the GGUF file `path`; if it is one part of a model, the headers of all parts, in order.

    UserError for a part that is missing, or that belongs to another split.
    """
    first = read_header(path)
    count = first.keys.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return [first]
    match = NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise UserError(
            f"model {path} is one of {count} parts, and the others are found by name: "
            f"give it back the name that ends in -00001-of-{count:05}.gguf (and so on)."
        )
    paths = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in paths if not part.is_file()]:
        others = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise UserError(
            f"model {path} is one of {count} parts, and {missing[0]} is not beside it{others}; put it there."
        )
    parts = [read_header(part) for part in paths]
    for number, part in enumerate(parts):
        if (part.keys.get("split.count"), part.keys.get("split.no")) != (count, number):
            raise UserError(
                f"model {part.path} is not part {number + 1} of {count}, as its name says; take the right one."
            )
    total = sum(len(part.tensors) for part in parts)
    for part in parts:
        if part.keys.get("split.tensors.count", total) != total:
            raise UserError(
                f"model {part.path}: the split has {part.keys['split.tensors.count']} tensors, its parts {total}; "
                "they are not all of one split: download them again."
            )
    if len({name for part in parts for name in part.shapes}) < total:
        raise UserError(f"model {path}: a tensor is in two of its parts; download them again.")
    return parts


def join(parts: list[Header], out: Path) -> Header:
    """Write the `parts` as the one file `out`, with the keys of the first; return its header."""
    first = parts[0]
    table, offset, places = b"", 0, []
    for part in parts:
        for tensor in part.tensors:
            name = tensor.name.encode()
            table += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
            table += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
            table += struct.pack("<IQ", tensor.kind, offset)
            places.append((part.path, tensor, offset))
            offset += -(-tensor.size // first.alignment) * first.alignment
    with open(first.path, "rb") as file:
        file.seek(24)
        keys = file.read(first.keys_end - 24)
    with open(out, "wb") as whole:
        whole.write(b"GGUF" + struct.pack("<IQQ", first.version, len(places), first.count_of_keys) + keys + table)
        data = -(-whole.tell() // first.alignment) * first.alignment
        for path, tensor, place in places:
            whole.seek(data + place)
            with open(path, "rb") as source:
                source.seek(tensor.start)
                rest = tensor.size
                while rest:
                    block = source.read(min(rest, 1 << 24))
                    if not block:
                        raise UserError(f"model {path}: it became shorter while it was read; copy it again.")
                    whole.write(block)
                    rest -= len(block)
        whole.truncate(data + offset)
    shutil.copymode(first.path, out)
    return read_header(out)
