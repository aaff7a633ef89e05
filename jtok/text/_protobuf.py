"""A strict reader of the protobuf wire format; knows no schema and never recurses."""

import struct
from collections.abc import Iterator

from jtok.errors import CheckpointError

__all__ = ["fields", "flag", "number", "text"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(data: bytes, origin: str) -> Iterator[tuple[int, int | bytes]]:
    """Yields field numbers and raw values of one message, in file order.

    Args:
      data: the message.
      origin: the file, for messages.

    Yields:
      Field number, and an int for a varint, else the bytes of the value.

    Raises:
      CheckpointError: the bytes are no message.
    """
    place = 0
    while place < len(data):
        tag, place = _varint(data, place, origin)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise _damaged(origin, f"field 0 at byte {place}")
        if wire == VARINT:
            value, place = _varint(data, place, origin)
            yield field, value
            continue
        if wire == BYTES:
            size, place = _varint(data, place, origin)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise _damaged(origin, f"wire type {wire} at byte {place}")
        if size > len(data) - place:
            raise _damaged(origin, f"it ends inside field {field}")
        yield field, data[place : place + size]
        place += size


def text(value: int | bytes, origin: str) -> str:
    """A string field."""
    if not isinstance(value, bytes):
        raise _damaged(origin, f"got the number {value} for a string")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _damaged(origin, f"a string is no UTF-8: {value[:20]!r}") from error


def number(value: int | bytes, origin: str) -> float:
    """A float field."""
    if not isinstance(value, bytes) or len(value) != 4:
        raise _damaged(origin, f"expected a float, got {value!r:.40}")
    return struct.unpack("<f", value)[0]


def flag(value: int | bytes, origin: str) -> int:
    """An int, enum or bool field, as a signed 32-bit number."""
    if not isinstance(value, int):
        raise _damaged(origin, f"expected an integer, got {value!r:.40}")
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def _varint(data: bytes, place: int, origin: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise _damaged(origin, "it ends inside a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _damaged(origin, f"a number longer than 10 bytes at byte {place}")


def _damaged(origin: str, why: str) -> CheckpointError:
    return CheckpointError(f"{origin}: damaged, it is no protobuf message ({why}).")
