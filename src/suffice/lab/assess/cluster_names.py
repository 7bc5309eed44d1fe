"""Names for clusters from their own words, in any script.

A class-based TF-IDF: the weight of a term depends on how many queries of the cluster contain it, and
how many of the others do. Terms are words and pairs of words. Text in scripts without spaces is
split into pairs of characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

MAX_WORDS = 8
NAME_WORDS = 3
_READ_CHARS = 1200  # of a query: half from either end
_QUERIES_PER_CLUSTER = 1500  # that are read
_MAX_WORD_CHARS = 24  # a longer word is an identifier or not a word
_RARITY = 0.7  # exponent of the frequency: below 1, a distinctive word beats a frequent one
_MIN_RATIO = 1.5  # times as frequent as elsewhere, or a term distinguishes nothing

_LINK = re.compile(r"(?:https?://|www\.)\S+|\\[A-Za-z]+|<[^<>\s]{1,40}>")  # TeX commands, tags
# Chinese, Japanese, Thai, Lao, Khmer, Burmese: no spaces between words.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\U00020000-\U0002fa1f]+"
)


@cache
def stop_words() -> frozenset[str]:
    """Frequent words of several languages that name nothing."""
    text = files(__package__).joinpath("stop_words.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(w for line in lines for w in line.split())


@cache
def _word() -> re.Pattern[str]:
    """Returns a pattern of a word: letters with combining marks, apostrophes and hyphens.

    A word class alone would split Hindi or Tamil at each vowel sign. Digits count only after a letter, as
    in "python3".
    """
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
    """Returns the words in order, in lower case, with "" for each stop word.

    A pair of words never spans a stop word. In scripts without spaces, pairs of characters take the
    place of words.

    >>> words_of("Prove the Pythagorean theorem, 42!")
    ['prove', '', 'pythagorean', 'theorem', '']
    """
    if len(text) > _READ_CHARS:
        text = text[: _READ_CHARS // 2] + " \n " + text[-_READ_CHARS // 2 :]
    text = _LINK.sub(" ", text.lower()).replace("’", "'")
    words: list[str] = []
    stop = stop_words()
    end = 0
    for match in _UNSPACED.finditer(text):
        _append_spaced_words(text[end : match.start()], words, stop)
        run = match.group()
        pairs = [run[i : i + 2] for i in range(max(1, len(run) - 1))]
        words += [p if len(p) == 2 and not _is_stop_pair(p, stop) else "" for p in pairs]
        words.append("")
        end = match.end()
    _append_spaced_words(text[end:], words, stop)
    return words


def _is_stop_pair(pair: str, stop: frozenset[str]) -> bool:
    # A pair with a particle on either side straddles two words.
    return pair in stop or pair[0] in stop or pair[1] in stop


def _append_spaced_words(text: str, words: list[str], stop: frozenset[str]) -> None:
    end = 0
    for match in _word().finditer(text):
        gap = text[end : match.start()]
        if gap.strip() and words and words[-1]:
            words.append("")  # punctuation and numbers separate words
        word = match.group()
        usable = 1 < len(word) <= _MAX_WORD_CHARS and word not in stop and word[0].isalpha()
        words.append(word if usable else "")
        end = match.end()
    if text[end:].strip() and words and words[-1]:
        words.append("")


def terms_of(text: str) -> set[str]:
    """The words of a text, and its pairs of neighbouring words."""
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


def name_clusters(
    texts: Sequence[str], labels: NDArray[np.intp], k: int, seed: int = 0
) -> list[list[str]]:
    """The terms that distinguish each cluster from the others.

    Args:
        texts: n queries.
        labels: (n,) cluster of each query.
        k: Number of clusters.
        seed: Seed of the sample of queries that are read.

    Returns:
        For each cluster up to MAX_WORDS terms, the most distinctive first; fewer, or none, if its
        queries contain no words.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    rng = np.random.default_rng(seed)
    sample: list[int] = []
    for c in range(k):
        inside = np.flatnonzero(labels == c)
        if len(inside) > _QUERIES_PER_CLUSTER:
            inside = np.sort(rng.choice(inside, _QUERIES_PER_CLUSTER, replace=False))
        sample += inside.tolist()
    sampled_labels = labels[sample]
    n_read = np.bincount(sampled_labels, minlength=k).astype(float)
    vectorizer = CountVectorizer(analyzer=terms_of, binary=True)
    try:
        occurrences = vectorizer.fit_transform([texts[i] for i in sample])
    except ValueError:  # no query has a term
        return [[] for _ in range(k)]
    members = np.zeros((k, len(sample)))
    members[sampled_labels, np.arange(len(sample))] = 1.0
    counts = np.asarray(members @ occurrences)  # (k, n_terms) queries that contain the term
    share = np.bincount(labels, minlength=k) / max(1, len(labels))
    terms = vectorizer.get_feature_names_out()
    return [_distinct_terms(_score_terms(c, counts, terms, n_read, share)) for c in range(k)]


def merge_same_names(words: list[list[str]]) -> NDArray[np.intp]:
    """Returns the number of the name that each cluster has, (k,).

    Two clusters have the same name if two of their first three words are the same, or if neither has
    any: a reader could not distinguish them.
    """
    number = list(range(len(words)))
    for b in range(len(words)):
        for a in range(b):
            first, second = set(words[a][:NAME_WORDS]), set(words[b][:NAME_WORDS])
            if len(first & second) >= min(2, max(len(first), len(second))):
                number[b] = number[a]
                break
    return np.unique(number, return_inverse=True)[1].astype(np.intp)


def _score_terms(
    c: int, counts: FloatArray, terms: NDArray[np.str_], n_read: FloatArray, share: FloatArray
) -> list[tuple[float, float, str]]:
    """Returns (score, p, term) of the terms of cluster c, best first: score = p^0.7 log(p / q).

    p is the share of its queries that contain the term. q is the share elsewhere, half of it that of
    the cluster that uses the term most, so that a word of two clusters names neither.
    """
    least = max(2.0, 0.01 * n_read[c]) if n_read[c] >= 3 else 1.0
    frequent = np.flatnonzero(counts[c] >= least)
    p = (counts[c, frequent] + 0.25) / (n_read[c] + 0.5)
    others = [o for o in range(len(counts)) if o != c and n_read[o]]
    score = p
    if others:
        weight = share[others] / max(share[others].sum(), 1e-12)
        q = (counts[others][:, frequent] + 0.25) / (n_read[others, None] + 0.5)
        mean = weight @ q
        elsewhere = 0.5 * mean + 0.5 * q.max(axis=0)
        distinctive = (p >= _MIN_RATIO * mean) & (p > elsewhere)
        frequent, p, elsewhere = frequent[distinctive], p[distinctive], elsewhere[distinctive]
        score = p**_RARITY * np.log(p / elsewhere)
    names = terms[frequent].tolist()
    scored = list(zip(score.tolist(), p.tolist(), names, strict=True))
    return sorted(scored, key=lambda s: (-s[0], s[2]))


def _distinct_terms(scored: list[tuple[float, float, str]]) -> list[str]:
    """Returns the first MAX_WORDS terms that do not repeat each other.

    Of a pair and its words only one is used: the pair if it accounts for most uses of the word. Of
    inflections the first is used.
    """
    pairs = {t: p for _, p, t in scored if " " in t or (_UNSPACED.match(t) and len(t) > 2)}
    terms: list[str] = []
    for _, p, term in scored[:200]:
        whole = next(
            (
                pair
                for pair, pair_p in pairs.items()
                if term != pair
                and pair_p >= 0.6 * p
                and (term in pair.split() or (_UNSPACED.match(term) and term in pair))
            ),
            None,
        )
        candidate = whole or term
        if not any(_is_same(candidate, t) for t in terms):
            terms.append(candidate)
        if len(terms) == MAX_WORDS:
            break
    return terms


def _is_same(a: str, b: str) -> bool:
    if _UNSPACED.match(a) or _UNSPACED.match(b):
        return a in b or b in a or a[-1] == b[0] or b[-1] == a[0]
    stems_a, stems_b = {_stem(w) for w in a.split()}, {_stem(w) for w in b.split()}
    return not stems_a.isdisjoint(stems_b)


def _stem(word: str) -> str:
    """A prefix by which "equation" and "equations" are the same word."""
    return word[:6] if len(word) > 6 else word.rstrip("s")


def unique_names(words: list[list[str]], fallback: Sequence[str]) -> list[str]:
    """One name per cluster, no two the same.

    Args:
        words: Terms of each cluster.
        fallback: The name of each cluster without terms.

    Returns:
        The first terms of each cluster, more of them if two clusters would have the same name.
    """
    names: list[str] = []
    for terms, other in zip(words, fallback, strict=True):
        for n in range(min(NAME_WORDS, len(terms)), len(terms) + 1):
            name = ", ".join(terms[:n]) if n else other
            if name not in names:
                break
        if name in names:
            number = 2
            while f"{name} ({number})" in names:
                number += 1
            name = f"{name} ({number})"
        names.append(name)
    return names
