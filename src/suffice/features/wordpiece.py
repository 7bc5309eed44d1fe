"""Text -> WordPiece ids, and what else is counted by the chunk, with a bounded cache of chunks.

Text of people repeats its chunks, so most cost one dictionary lookup; a chunk never seen is split
greedily, longest piece first (Wu et al. 2016, "Google's Neural Machine Translation System", section
4.1, as BERT's uncased vocabulary uses it). Work per chunk is bounded whatever it holds.

>>> WordPiece(["[UNK]", "un", "##afford", "##able", "?"]).ids("Unaffordable?")
[1, 2, 3, 4]
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files

_GENERATION = 32_768  # chunks remembered in each of two generations
_CHUNK_CHARS = 40  # a longer chunk is not worth remembering
_WORD_CHARS = 48  # a longer word is unknown (BERT: 100): no language writes them, encodings do
_MIXED_CHARS = 16  # so is a word this long of letters and digits: a hash, a key, base64

# What is remembered of a chunk: its pieces, and the signals it counts for (an index as often as it
# counts).
Chunk = tuple[tuple[int, ...], tuple[int, ...]]

_ASCII = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")


class WordPiece:
    """A vocabulary with its cache. vocabulary: pieces in the order of their ids; "##" marks one
    that continues a word; holds "[UNK]". Raises ValueError where it does not.

    count: the signals that a chunk (lower case, no white space) counts for. Remembered with its
    pieces, because the loop over chunks is what an ask costs.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        count: Callable[[str], tuple[int, ...]] | None = None,
    ) -> None:
        ids = {piece: i for i, piece in enumerate(vocabulary)}
        if "[UNK]" not in ids:
            raise ValueError("vocabulary: holds no [UNK]")
        self.size = len(ids)
        self._unknown = ids["[UNK]"]
        self._head = {p: i for p, i in ids.items() if not p.startswith("##") or p in ("#", "##")}
        self._tail = {p[2:]: i for p, i in ids.items() if p.startswith("##") and len(p) > 2}
        self._head_longest = _longest(self._head)
        self._tail_longest = _longest(self._tail)
        self._count = count
        self._young: dict[str, Chunk] = {}
        self._old: dict[str, Chunk] = {}

    def ids(self, text: str) -> list[int]:
        """Ids of the pieces of `text`, without special tokens. The caller bounds its length."""
        out: list[int] = []
        for chunk in text.lower().split():
            out += (self._young.get(chunk) or self._miss(chunk))[0]
        return out

    def read(self, low: str, counts: list[float]) -> tuple[list[int], int]:
        """(ids of the pieces, number of chunks) of a text in lower case; `counts` goes up by one at
        each index that a chunk counts for."""
        out: list[int] = []
        get, miss = self._young.get, self._miss
        chunks = low.split()
        for chunk in chunks:
            # A miss may start a new generation; `get` then serves the old one, which is correct,
            # only a little slower until the next call.
            pieces, hits = get(chunk) or miss(chunk)
            out += pieces
            if hits:  # most chunks count for nothing, and an empty loop is not free
                for i in hits:
                    counts[i] += 1.0
        return out, len(chunks)

    def _miss(self, chunk: str) -> Chunk:
        found = self._old.get(chunk)
        if found is None:
            words = _ASCII.findall(chunk) if chunk.isascii() else _words(chunk)
            pieces: list[int] = []
            for word in words:
                whole = self._head.get(word)
                if whole is not None:
                    pieces.append(whole)
                elif len(word) > _MIXED_CHARS and (len(word) > _WORD_CHARS or _mixed(word)):
                    pieces.append(self._unknown)
                else:
                    pieces.extend(self._split(word))
            found = (tuple(pieces), () if self._count is None else self._count(chunk))
        if len(chunk) <= _CHUNK_CHARS:
            if len(self._young) >= _GENERATION:
                self._old, self._young = self._young, {}
            self._young[chunk] = found
        return found

    def _split(self, word: str) -> list[int]:
        """Greedy pieces of one word; [UNK] alone where some part of it is no piece at all."""
        pieces: list[int] = []
        known, longest = self._head, self._head_longest
        at, end = 0, len(word)
        while at < end:
            # No entry that begins with these two characters is longer than this: junk ends here
            # after one or two lookups instead of eighteen.
            most = longest.get(word[at : at + 2], 1)
            for stop in range(min(end, at + most), at, -1):
                hit = known.get(word[at:stop])
                if hit is not None:
                    pieces.append(hit)
                    at = stop
                    break
            else:
                return [self._unknown]
            known, longest = self._tail, self._tail_longest
        return pieces


def _longest(known: Iterable[str]) -> dict[str, int]:
    """Two first characters -> length of the longest entry that begins with them."""
    out: dict[str, int] = {}
    for piece in known:
        start = piece[:2]
        if len(piece) > out.get(start, 0):
            out[start] = len(piece)
    return out


def _mixed(word: str) -> bool:
    return not word.isalpha() and not word.isdigit()


@cache
def _kind(c: str) -> str:
    """ "w" part of a word, "p" stands alone, "-" is dropped; BERT's basic tokenizer, one char."""
    code = ord(c)
    category = unicodedata.category(c)
    if category == "Mn" or category[0] == "C" or code == 0xFFFD:
        return "-"
    if code < 128:
        return "w" if c.isalnum() else "p"
    if category[0] == "P" or _is_cjk(code):
        return "p"
    return "w"


def _is_cjk(code: int) -> bool:
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def _words(chunk: str) -> list[str]:
    """Words and punctuation of a chunk in any script, accents stripped."""
    words: list[str] = []
    word = ""
    for c in unicodedata.normalize("NFD", chunk):
        kind = _kind(c)
        if kind == "w":
            word += c
        elif kind == "p":
            if word:
                words.append(word)
                word = ""
            words.append(c)
    if word:
        words.append(word)
    return words


@cache
def load_default() -> WordPiece:
    """The vocabulary of the shipped token table, counting the signals of the ask by the way."""
    from suffice.features.signals import count_chunk

    text = files(__package__).joinpath("wordpiece.txt").read_text(encoding="utf-8")
    return WordPiece(text.rstrip("\n").split("\n"), count_chunk)
