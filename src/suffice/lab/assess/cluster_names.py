"""Names for clusters out of their own words, in any script.

A class-based TF-IDF: a term counts by how many queries of the cluster hold it, against how many of
the others do. Terms are words and pairs of words; scripts that put no spaces between words are cut
into pairs of characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from math import log

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

MOST_WORDS = 8
IN_A_NAME = 3
_READ = 1200  # characters of a query that are read for words: half from either end
_PER_CLUSTER = 1500  # queries of a cluster that are read
_GROW = 0.7  # of its occurrences have the same neighbour, and a piece grows by it
_LONGEST_GROWN = 10
_LONGEST = 24  # letters; a longer word is an identifier or worse
_RARE = 0.7  # below 1, the telling word wins over the merely frequent one
_RATHER = 1.5  # times as common as elsewhere, or a term sets nothing apart

_LINK = re.compile(r"(?:https?://|www\.)\S+|\\[A-Za-z]+|<[^<>\s]{1,40}>")  # TeX commands, tags
# Chinese, Japanese, Thai, Lao, Khmer, Burmese: no spaces between words.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\U00020000-\U0002fa1f]+"
)


@cache
def stop_words() -> frozenset[str]:
    text = files(__package__).joinpath("stop_words.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(w for line in lines for w in line.split())


@cache
def _word() -> re.Pattern[str]:
    """Letters with their combining marks (`\\w` alone would cut Hindi or Tamil at each vowel
    sign), joined by apostrophes and hyphens; digits only behind a letter, as in "python3"."""
    marks = [c for c in range(0x300, 0x10000) if unicodedata.category(chr(c))[0] == "M"]
    spans: list[list[int]] = []
    for c in marks:
        if spans and c == spans[-1][1] + 1:
            spans[-1][1] = c
        else:
            spans.append([c, c])
    marked = "".join(f"{chr(a)}-{chr(b)}" for a, b in spans)
    letter = f"(?:[^\\W\\d_]|[{marked}])"
    return re.compile(f"{letter}+(?:['’\\-]{letter}+)*[0-9]{{0,2}}(?![^\\W_])")


def words_of(text: str) -> list[str]:
    """Words in order, lower case, stop words as "" so that a pair never spans one. Pairs of
    characters stand for words in scripts without spaces.

    >>> words_of("Prove the Pythagorean theorem, 42!")
    ['prove', '', 'pythagorean', 'theorem', '']
    """
    if len(text) > _READ:
        text = text[: _READ // 2] + " \n " + text[-_READ // 2 :]
    text = _LINK.sub(" ", text.lower()).replace("’", "'")
    out: list[str] = []
    stop = stop_words()
    at = 0
    for found in _UNSPACED.finditer(text):
        _spaced(text[at : found.start()], out, stop)
        run = found.group()
        pairs = [run[i : i + 2] for i in range(max(1, len(run) - 1))]
        out += [p if len(p) == 2 and not _stopped(p, stop) else "" for p in pairs]
        out.append("")
        at = found.end()
    _spaced(text[at:], out, stop)
    return out


def _stopped(pair: str, stop: frozenset[str]) -> bool:
    # A particle on either side makes a pair that straddles two words.
    return pair in stop or pair[0] in stop or pair[1] in stop


def _spaced(text: str, out: list[str], stop: frozenset[str]) -> None:
    end = 0
    for found in _word().finditer(text):
        gap = text[end : found.start()]
        if gap.strip() and out and out[-1]:
            out.append("")  # punctuation and numbers part words
        word = found.group()
        good = 1 < len(word) <= _LONGEST and word not in stop
        out.append(word if good else "")
        end = found.end()
    if text[end:].strip() and out and out[-1]:
        out.append("")


def terms_of(text: str) -> set[str]:
    """Words of a text, and pairs of neighbours."""
    words = words_of(text)
    terms = set(words)
    for a, b in pairwise(words):
        if a and b:
            if _UNSPACED.match(a) and a[-1] == b[0]:
                terms.add(a + b[1:])
            elif a != b:
                terms.add(f"{a} {b}")
    terms.discard("")
    return terms


def names(texts: Sequence[str], labels: NDArray[np.intp], k: int, seed: int = 0) -> list[list[str]]:
    """For each of k clusters up to MOST_WORDS terms, the most telling first; fewer, or none, where
    its queries hold no words. texts, labels: (n,)."""
    rng = np.random.default_rng(seed)
    share = np.bincount(labels, minlength=k) / max(1, len(labels))
    counts: list[Counter[str]] = []
    samples: list[list[str]] = []
    for c in range(k):
        inside = np.flatnonzero(labels == c)
        if len(inside) > _PER_CLUSTER:
            inside = np.sort(rng.choice(inside, _PER_CLUSTER, replace=False))
        samples.append([texts[i] for i in inside.tolist()])
        counted: Counter[str] = Counter()
        for text in samples[-1]:
            counted.update(terms_of(text))
        counts.append(counted)
    read = np.array([len(sample) for sample in samples], float)
    found = []
    for c in range(k):
        terms: list[str] = []
        for term in _telling(c, counts, read, share):
            grown = _grow(term, samples[c]) if _UNSPACED.match(term) else term
            if not any(_same(grown, t) for t in terms):
                terms.append(grown)
        found.append(terms)
    return found


def _grow(term: str, texts: list[str]) -> str:
    """A piece of a script without spaces, grown to the word or phrase it is nearly always part
    of."""
    while len(term) < _LONGEST_GROWN:
        before: Counter[str] = Counter()
        after: Counter[str] = Counter()
        seen = 0
        for text in texts:
            text = text.lower()
            at = text[:_READ].find(term)
            if at >= 0:
                seen += 1
                before[text[at - 1 : at]] += 1
                after[text[at + len(term) : at + len(term) + 1]] += 1
        for side, left in ((before, True), (after, False)):
            neighbour, count = side.most_common(1)[0] if side else ("", 0)
            if _UNSPACED.fullmatch(neighbour) and count >= _GROW * seen:
                term = neighbour + term if left else term + neighbour
                break
        else:
            return term
    return term


def alike(words: list[list[str]]) -> NDArray[np.intp]:
    """(k,) number of the name each cluster shares: clusters go together where two of their first
    three words are the same, or where neither has any. No reader could tell them apart."""
    number = list(range(len(words)))
    for b in range(len(words)):
        for a in range(b):
            first, second = set(words[a][:IN_A_NAME]), set(words[b][:IN_A_NAME])
            if len(first & second) >= min(2, max(len(first), len(second))):
                number[b] = number[a]
                break
    return np.unique(number, return_inverse=True)[1].astype(np.intp)


def _telling(c: int, counts: list[Counter[str]], read: FloatArray, share: FloatArray) -> list[str]:
    """The terms of cluster c by p^0.7 log(p / q): p = share of its queries that hold the term, q = the
    share elsewhere, half of it the cluster that uses the term most, so that a word of two clusters
    names neither."""
    least = max(2.0, 0.01 * read[c]) if read[c] >= 3 else 1.0
    others = [o for o in range(len(counts)) if o != c and read[o]]
    weight = np.array([share[o] for o in others])
    weight /= weight.sum() if weight.sum() else 1.0
    scored: list[tuple[float, float, str]] = []
    for term, count in counts[c].items():
        if count < least:
            continue
        p = (count + 0.25) / (read[c] + 0.5)
        if not others:
            scored.append((p, p, term))
            continue
        q = np.array([(counts[o][term] + 0.25) / (read[o] + 0.5) for o in others])
        away = 0.5 * float(weight @ q) + 0.5 * float(q.max())
        if p >= _RATHER * float(weight @ q) and p > away:
            scored.append((p**_RARE * log(p / away), p, term))
    scored.sort(key=lambda s: (-s[0], s[2]))
    return _distinct(scored)


def _distinct(scored: list[tuple[float, float, str]]) -> list[str]:
    """The first MOST_WORDS terms that do not repeat each other: of a pair and its words only one,
    the pair where it accounts for most of the word; of inflections the first."""
    pairs = {t: p for _, p, t in scored if " " in t or (_UNSPACED.match(t) and len(t) > 2)}
    taken: list[str] = []
    for _, p, term in scored[:200]:
        whole = next((x for x, px in pairs.items() if term != x and px >= 0.6 * p and
                      (term in x.split() or (_UNSPACED.match(term) and term in x))), None)  # fmt: skip
        pick = whole or term
        if not any(_same(pick, t) for t in taken):
            taken.append(pick)
        if len(taken) == MOST_WORDS:
            break
    return taken


def _same(a: str, b: str) -> bool:
    if _UNSPACED.match(a) or _UNSPACED.match(b):
        return a in b or b in a or a[-1] == b[0] or b[-1] == a[0]
    stems_a, stems_b = {_stem(w) for w in a.split()}, {_stem(w) for w in b.split()}
    return not stems_a.isdisjoint(stems_b)


def _stem(word: str) -> str:
    """Enough of a stem to see that "equation" and "equations" are one."""
    return word[:6] if len(word) > 6 else word.rstrip("s")


def unique(words: list[list[str]], fallback: Sequence[str]) -> list[str]:
    """One name a cluster, no two alike: its first words, more of them where two would share a name;
    `fallback` where it has none."""
    out: list[str] = []
    for terms, other in zip(words, fallback, strict=True):
        for n in range(min(IN_A_NAME, len(terms)), len(terms) + 1):
            name = ", ".join(terms[:n]) if n else other
            if name not in out:
                break
        if name in out:
            at = 2
            while f"{name} ({at})" in out:
                at += 1
            name = f"{name} ({at})"
        out.append(name)
    return out
