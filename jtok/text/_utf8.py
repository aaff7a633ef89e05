"""UTF-8 byte by byte: which bytes may follow, and where text is cut inside a letter."""

__all__ = ["char_length", "code_points", "following", "split_tail"]


def char_length(lead: int) -> int:
    """Bytes of the character that a first byte begins; 0 for no first byte."""
    if lead < 0x80:
        return 1
    if 0xC2 <= lead <= 0xDF:
        return 2
    if 0xE0 <= lead <= 0xEF:
        return 3
    return 4 if 0xF0 <= lead <= 0xF4 else 0


_SECOND = {
    0xE0: range(0xA0, 0xC0),
    0xED: range(0x80, 0xA0),
    0xF0: range(0x90, 0xC0),
    0xF4: range(0x80, 0x90),
}
_ANY = range(0x80, 0xC0)


def following(partial: bytes) -> range:
    """The bytes that may follow the first bytes of a character."""
    return _SECOND.get(partial[0], _ANY) if len(partial) == 1 else _ANY


def split_tail(data: bytes) -> tuple[str, bytes] | None:
    """Whole characters, and the first bytes of one more; None where it is no UTF-8."""
    for cut in range(min(3, len(data)) + 1):
        head, tail = data[: len(data) - cut], data[len(data) - cut :]
        try:
            text = head.decode()
        except UnicodeDecodeError:
            continue
        return (text, tail) if not tail or _begins(tail) else None
    return None


def _begins(tail: bytes) -> bool:
    """Whether bytes are the beginning, not all, of one character."""
    if not 1 <= len(tail) < char_length(tail[0]):
        return False
    parts = range(1, len(tail))
    return all(tail[place] in following(tail[:place]) for place in parts)


def code_points(partial: bytes) -> range:
    """The code points of all characters that begin with some bytes."""
    low, high = partial, partial
    while len(low) < char_length(partial[0]):
        low += bytes([following(low)[0]])
        high += bytes([following(high)[-1]])
    return range(ord(low.decode()), ord(high.decode()) + 1)
