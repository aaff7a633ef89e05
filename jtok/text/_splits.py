"""Split patterns of GPT-2, Llama 3 and Qwen 2 as automata that guess what is ahead.

A pattern reads one class of characters after another. A step says whether a new
pretoken begins at the character, and the state after it. Where the pattern looks ahead
(a run of spaces gives its last one to the next word, `'r` waits for an `e`), there are
several steps, and all but one die as soon as the text decides. A text is split as the
path says that is alive at its end and may end there.
"""

import functools

import tokenizers

from jtok.text import _utf8

__all__ = ["KINDS", "LETTERS", "START", "A", "L", "Splits", "splits_of"]

L, E, ONE, TWO, EL, N, P, A, S, T, NL = range(11)  # classes of characters
LETTERS = frozenset({L, E, ONE, TWO, EL})
_SPACES = frozenset({S, T, NL})
_MARKS = frozenset({P, A})
KINDS = ("gpt2", "llama3", "qwen2")
_DIGITS = {"gpt2": None, "llama3": 3, "qwen2": 1}  # most of one pretoken

# States, named by what the pretoken is so far and what has to follow.
START = "start"
_END_OK = frozenset(
    {START, "letters", "mark", "marks", "quote", "short", "not e", "not l", "run"}
    | {"marks+newline", "last newline", "digit 1", "digit 2", "digit 3", "digits"}
)
# These must go on inside of the pretoken.
_OPEN = frozenset({"space+", "blank+", "short e", "short l", "to newline"})

Steps = tuple[tuple[bool, str], ...]


class Splits:
    """The automaton of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._begin = self._begin_gpt2 if kind == "gpt2" else self._begin_llama
        self._go_on = self._go_on_gpt2 if kind == "gpt2" else self._go_on_llama
        self._blocks: dict[int, list[int]] = {}
        self._steps: dict[tuple[str, int], Steps] = {}

    def step(self, state: str, kind: int) -> Steps:
        """`(whether a pretoken begins here, the next state)`, all that may be."""
        key = state, kind
        if key not in self._steps:
            inside = [] if state == START else self._go_on(state, kind)
            found = [(False, s) for s in inside]
            if state == START or self._may_split(state, kind):
                fresh = self._begin(kind)
                if state == "quote" and kind in (TWO, EL):  # no contraction, then
                    fresh = ["not e" if kind == TWO else "not l"]
                found += [(True, s) for s in fresh if self._fits(state, s)]
            self._steps[key] = tuple(dict.fromkeys(found))
        return self._steps[key]

    def can_end(self, state: str) -> bool:
        """Whether the text may end here."""
        return state in _END_OK

    def can_close(self, state: str) -> bool:
        """Whether the pretoken may end here, whatever comes then."""
        return state not in _OPEN

    # ---- classes

    def class_of(self, char: str) -> int:
        """The class of a character."""
        block, place = divmod(ord(char), 256)
        return self.block(block)[place]

    def block(self, block: int) -> list[int]:
        """The classes of 256 code points."""
        if block not in self._blocks:
            self._blocks[block] = self._classify(block)
        return self._blocks[block]

    def classes_of(self, partial: bytes) -> frozenset[int]:
        """The classes of all characters that begin with some bytes."""
        return _classes_of(self.kind, partial)

    def _classify(self, block: int) -> list[int]:
        """By the library's own Unicode tables."""
        points = range(256 * block, 256 * block + 256)
        chars = ["\0" if 0xD800 <= point < 0xE000 else chr(point) for point in points]
        classes = [P] * 256
        fold = "" if self.kind == "gpt2" else "(?i)"
        for kind, regex in (
            (T, r"\s"), (NL, r"[\r\n]"), (S, " "), (N, r"\p{N}"), (L, r"\p{L}"),
            (E, f"{fold}e"), (ONE, f"{fold}(?:s|t|m|d)"), (TWO, f"{fold}(?:r|v)"),
            (EL, f"{fold}l"), (A, "'"),
        ):  # fmt: skip
            for place in _matches(regex, "".join(chars)):
                classes[place] = kind
        return classes

    # ---- where a pretoken begins

    def _may_split(self, state: str, kind: int) -> bool:
        """Whether the pretoken so far ends before a character of some class."""
        if state in _OPEN:
            return False
        if state == "alone":  # one space before what is none
            return kind not in _SPACES and (self.kind == "gpt2" or kind not in LETTERS)
        if state == "alone, digit":
            return kind == N
        if state == "run":  # its last space goes to what follows
            return kind in (_SPACES if self.kind == "gpt2" else {S, T})
        if state == "last newline":
            return kind != NL
        if state in ("not e", "not l") and kind == (E if state == "not e" else EL):
            return False
        if state in ("letters", "not e", "not l") or (
            state in ("mark", "quote") and self.kind != "gpt2"
        ):
            return kind not in LETTERS and not self._go_on(state, kind)
        if state == "quote":
            return kind != ONE and kind not in _MARKS
        return not self._go_on(state, kind)

    def _fits(self, state: str, fresh: str) -> bool:
        """Whether a beginning agrees with what the state before promised."""
        if state == "run":  # the last of the run, before what is no space
            return fresh in ("space+", "blank+", "alone", "alone, digit")
        return state != "last newline" or fresh != "to newline"

    def _begin_gpt2(self, kind: int) -> list[str]:
        if kind in LETTERS:
            return ["letters"]
        if kind in _SPACES:
            return ["space+" if kind == S else "alone", "run"]
        return [{N: "digits", P: "marks", A: "quote"}[kind]]

    def _begin_llama(self, kind: int) -> list[str]:
        if kind in LETTERS:
            return ["letters"]
        if kind == NL:
            return ["to newline", "last newline"]
        if kind == S:
            return ["space+", "alone, digit", "run", "to newline"]
        if kind == T:
            return ["blank+", "alone", "run", "to newline"]
        return [{N: "digit 1", P: "mark", A: "quote"}[kind]]

    # ---- where a pretoken goes on

    def _go_on_gpt2(self, state: str, kind: int) -> list[str]:
        if state == "space+":
            if kind in LETTERS:
                return ["letters"]
            return {N: ["digits"], P: ["marks"], A: ["marks"]}.get(kind, [])
        if state == "letters" and kind in LETTERS:
            return ["letters"]
        if state == "digits" and kind == N:
            return ["digits"]
        if state in ("marks", "quote") and kind in _MARKS:
            return ["marks"]
        if state == "run" and kind in _SPACES:
            return ["run"]
        return self._contraction(state, kind)

    def _go_on_llama(self, state: str, kind: int) -> list[str]:
        if state in ("space+", "blank+", "mark") and kind in LETTERS:
            return ["letters"]
        if state in ("space+", "mark", "marks", "quote") and kind in _MARKS:
            return ["marks"]
        if state in ("mark", "marks", "quote", "marks+newline") and kind == NL:
            return ["marks+newline"]
        if state == "letters" and kind in LETTERS:
            return ["letters"]
        if state.startswith("digit ") and kind == N:
            count = int(state[-1])
            return [f"digit {count + 1}"] if count < (_DIGITS[self.kind] or 0) else []
        if state == "to newline" and kind in _SPACES:
            return ["to newline", *(["last newline"] if kind == NL else [])]
        if state == "run" and kind in (S, T):
            return ["run"]
        return self._contraction(state, kind)

    def _contraction(self, state: str, kind: int) -> list[str]:
        if state == "quote":
            wide = self.kind != "gpt2"  # where a mark may begin a word
            if kind == ONE:
                return ["short"]
            if kind in (TWO, EL):
                end = "e" if kind == TWO else "l"
                return [f"short {end}", *([f"not {end}"] if wide else [])]
            return ["letters"] if wide and kind in LETTERS else []
        if (state, kind) in (("short e", E), ("short l", EL)):
            return ["short"]
        if state in ("not e", "not l") and kind in LETTERS:
            return [] if (state, kind) in (("not e", E), ("not l", EL)) else ["letters"]
        return []


@functools.cache
def splits_of(kind: str) -> Splits:
    """The automaton of a kind, which keeps what it has worked out."""
    return Splits(kind)


@functools.lru_cache(maxsize=4096)
def _classes_of(kind: str, partial: bytes) -> frozenset[int]:
    splits, points = splits_of(kind), _utf8.code_points(partial)
    found = {P} if points[-1] >= 0x40000 else set()  # no letters, digits or spaces
    end = min(points[-1] + 1, 0x40000)
    for block in range(points[0] // 256, (end + 255) // 256):
        part = splits.block(block)
        first, last = max(points[0] - 256 * block, 0), min(end - 256 * block, 256)
        found.update(part[first:last])
    return frozenset(found)


def _matches(regex: str, text: str) -> set[int]:
    """Places of the characters that a regex matches, one at a time."""
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(regex), "removed")
    places = set(range(len(text)))
    for _, (start, end) in cut.pre_tokenize_str(text):
        places.difference_update(range(start, end))
    return places
