"""Damaged checkpoints, made from whole ones: seeded mutations of bytes and of JSON."""

import copy
import json
import random
from typing import Any

DEEP = 20_000
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**12, 10**40),
    *(0.0, 1.5, 1e308, -1e-300, float("nan"), float("inf"), float("-inf")),
    *("", "8", "true", "llama", "gpt2", "silu", "\ud800", "\0", "../x", "é" * 300),
    *("\0.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors"),
    *([], [1], [None], ["x"], [[1]], [2**63], {}, {"a": 1}, {"factor": None}),
    *({"rope_type": "llama3"}, {"rope_type": "linear", "factor": 0}, {"type": []}),
    {"rope_type": "linear", "factor": 2.0, "rope_theta": None, "extra": [[1], {}]},
)


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flips, cuts, repeats, inserts."""
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[to:]
    if kind == 2:
        return data[:to] + data[at:]
    if kind == 3:
        return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
    if kind == 4:
        return data[:at] + rng.choice((b"\xff\xfe", b"\0", b"\xed\xa0\x80")) + data[at:]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice(
                (rng.randrange(256), *b'0129-e."[]{},: ')
            )
    return bytes(changed)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    if isinstance(value, dict):
        found = [(value, key) for key in value]
    elif isinstance(value, list):
        found = [(value, index) for index in range(len(value))]
    else:
        return []
    return found + [place for box, key in found for place in _places(box[key])]


def change_value(rng: random.Random, value: Any) -> Any:
    """Changes, drops or renames one to three entries, at any depth."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return rng.choice(VALUES)
        box, key = rng.choice(places)
        kind = rng.randrange(8)
        old = box[key]
        if kind == 0:
            del box[key]
        elif kind == 1 and isinstance(box, dict):
            box[rng.choice((f"{key}x", "", "\ud800", "__metadata__"))] = box.pop(key)
        elif kind == 2 and isinstance(old, int):
            box[key] = rng.choice((-old, old + 1, old * 2, str(old), float(old)))
        elif kind == 3:
            other, name = rng.choice(places)
            box[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else 1)
        else:
            box[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def change_json(rng: random.Random, value: Any) -> bytes:
    """The JSON text of a changed value, or a changed text of the value."""
    kind = rng.randrange(12)
    text = json.dumps(value).encode()
    if kind == 0:
        return change_bytes(rng, text)
    if kind == 1:
        return rng.choice((b"[", b'{"a":')) * DEEP
    if kind == 2:
        key = rng.choice(list(value) or ["a"])
        twice = json.dumps({key: rng.choice(VALUES)}).encode()
        return text[:-1] + b", " + twice[1:]
    if kind == 3:
        return rng.choice((b"", b"null", b"[]", b"1e999", b'"x"', b"\xef\xbb\xbf{}"))
    return json.dumps(change_value(rng, value)).encode()


def change_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A file whose length, header, payload or bytes anywhere are changed."""
    length = int.from_bytes(data[:8], "little")
    header, payload = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(8)
    if kind == 0:
        return change_bytes(rng, data)
    if kind == 1:
        sizes = (0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1)
        return rng.choice(sizes).to_bytes(8, "little") + header + payload
    if kind == 2:
        payload = rng.choice((payload[:-1], payload + b"\0", b"", payload * 2))
    elif kind == 3:
        return data[: rng.randrange(len(data))]
    else:
        header = change_json(rng, json.loads(header))
    return len(header).to_bytes(8, "little") + header + payload
