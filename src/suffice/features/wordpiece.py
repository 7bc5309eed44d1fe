"""Splits text into WordPiece ids, and counts signals per chunk, with a bounded cache of chunks.

People repeat their chunks, so most chunks cost one dictionary lookup. A chunk that is not cached is
split greedily, longest piece first (Wu et al. 2016, "Google's Neural Machine Translation System",
section 4.1, as BERT's uncased vocabulary uses it). The work per chunk is bounded.

>>> WordPiece(["[UNK]", "un", "##afford", "##able", "?"]).ids("Unaffordable?")
[1, 2, 3, 4]
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

_CHUNK_CHARS = 40  # longer chunks are not cached: they hardly ever repeat
_WORD_CHARS = 48  # a longer word is unknown (BERT: 100): languages do not have them, encodings do
_MIXED_CHARS = 16  # a word of this length with letters and digits is unknown: a hash, a key, base64

_ASCII = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")


# Chunk -> int32 ids of its pieces, and chunk -> the signals it counts for, if there are any.
_Generation = tuple[dict[str, bytes], dict[str, bytes]]


class WordPiece:
    """A vocabulary with its cache of chunks.

    A chunk is a part of a text between white space, in any case. The cache keeps, per chunk, the ids
    of its pieces and the signals that it counts for, each as bytes, so that a text is one join. It
    has two generations: a full current one becomes the previous one, which is then read only.

    Args:
        vocabulary: pieces in the order of their ids. "##" marks a piece that continues a word.
        count: the indices of the signals that a lower-case chunk counts for, one per count.
        generation: chunks per generation of the cache.

    Raises:
        ValueError: the vocabulary does not have "[UNK]".
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        count: Callable[[str], tuple[int, ...]] | None = None,
        generation: int = 32_768,
    ) -> None:
        self._pieces = dict(zip(vocabulary, range(len(vocabulary)), strict=True))
        if "[UNK]" not in self._pieces:
            raise ValueError("vocabulary: [UNK] is missing")
        self.size = len(vocabulary)
        self._unknown = self._pieces["[UNK]"]
        # First two characters of a piece, after its "##" -> length of the longest such piece.
        self._longest = {
            p[:4] if p[:2] == "##" else p[:2]: len(p) for p in sorted(vocabulary, key=len)
        }
        self._count = count
        self._generation = generation
        self._current: _Generation = {}, {}
        self._previous: _Generation = {}, {}

    @property
    def n_cached(self) -> int:
        """The number of cached chunks."""
        return len(self._current[0]) + len(self._previous[0])

    def ids(self, text: str) -> list[int]:
        """Ids of the pieces of `text`, without special tokens. The caller bounds its length."""
        return array("i", self.read(text.split())[0]).tolist()

    def read(self, chunks: Sequence[str]) -> tuple[bytes, bytes]:
        """Encode the chunks of a text.

        Returns:
            The ids of the pieces as int32, and the indices of the signals, one byte per count.
        """
        ids_of, counted_of = self._current  # read once: another thread may start a generation
        try:
            ids = b"".join(map(ids_of.__getitem__, chunks))
        except KeyError:
            entries = [self._entry(chunk) for chunk in chunks]
            return b"".join([e[0] for e in entries]), b"".join([e[1] for e in entries])
        return ids, b"".join(filter(None, map(counted_of.get, chunks)))

    def _entry(self, chunk: str) -> tuple[bytes, bytes]:
        """The ids and signals of a chunk, from the cache or new."""
        ids_of, counted_of = self._current
        ids = ids_of.get(chunk)
        if ids is not None:
            return ids, counted_of.get(chunk, b"")
        previous_ids, previous_counted = self._previous
        ids = previous_ids.get(chunk)
        if ids is None:
            ids, counted = self._encode_uncached(chunk.lower())
        else:
            counted = previous_counted.get(chunk, b"")
        if len(chunk) <= _CHUNK_CHARS:
            if len(ids_of) >= self._generation:
                self._previous, self._current = self._current, ({}, {})
                ids_of, counted_of = self._current
            if counted:
                counted_of[chunk] = counted
            ids_of[chunk] = ids  # last: a reader that finds the ids finds the signals too
        return ids, counted

    def _encode_uncached(self, chunk: str) -> tuple[bytes, bytes]:
        words = _ASCII.findall(chunk) if chunk.isascii() else _words(chunk)
        pieces: list[int] = []
        for word in words:
            whole = self._pieces.get(word)
            if whole is not None:
                pieces.append(whole)
            elif len(word) > _MIXED_CHARS and (len(word) > _WORD_CHARS or _is_mixed(word)):
                pieces.append(self._unknown)
            else:
                pieces.extend(self._split(word))
        counted = () if self._count is None else self._count(chunk)
        return array("i", pieces).tobytes(), bytes(counted)

    def _split(self, word: str) -> list[int]:
        """Greedy pieces of one word; [UNK] alone if some part of it is not a piece."""
        pieces: list[int] = []
        remaining, start = word, 0  # `start`: of the characters of `remaining` that are to be split
        while start < len(remaining):
            # No piece with these first characters is longer: random text ends here after one or two
            # lookups, not eighteen.
            longest = self._longest.get(remaining[: start + 2], start + 1)
            for stop in range(min(len(remaining), longest), start, -1):
                piece = self._pieces.get(remaining[:stop])
                if piece is not None:
                    pieces.append(piece)
                    remaining, start = "##" + remaining[stop:], 2
                    break
            else:
                return [self._unknown]
        return pieces


def _is_mixed(word: str) -> bool:
    return not word.isalpha() and not word.isdigit()


@cache
def _kind(c: str) -> str:
    """Class of one character in BERT's basic tokenizer.

    Returns:
        "w" for a part of a word, "p" for a word of one character, "-" for one that is dropped.
    """
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


def load_vocabulary() -> list[str]:
    """The shipped vocabulary, in the order of the ids."""
    text = Path(__file__).with_name("wordpiece.txt").read_text(encoding="utf-8")
    return text.rstrip("\n").split("\n")
