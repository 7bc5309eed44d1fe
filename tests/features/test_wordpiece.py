"""Text to WordPiece ids to a vector: right, bounded, the same for serving and training."""

from __future__ import annotations

import base64
import hashlib
import re
import time
import unicodedata

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice import features
from suffice.features import embedding
from suffice.features import wordpiece as tokens
from suffice.types import Message

VOCABULARY = ["[UNK]", *"abcdefghij", "ab", "abc", "##a", "##b", "##bc", "##cd", "##j", "!", "?"]


def literal(text: str, vocabulary: list[str]) -> list[int]:
    """Wu et al. 2016, section 4.1, word by word as written; ASCII only."""
    ids = {p: i for i, p in enumerate(vocabulary)}
    out: list[int] = []
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()):
        pieces, at = [], 0
        while at < len(word):
            for stop in range(len(word), at, -1):
                piece = ("##" if at else "") + word[at:stop]
                if piece in ids:
                    pieces.append(ids[piece])
                    at = stop
                    break
            else:
                pieces, at = [ids["[UNK]"]], len(word)
        out += pieces
    return out


@given(st.lists(st.text("abcdj!? ", max_size=12), max_size=8))
def test_pieces_are_the_longest_that_fit_and_the_cache_changes_nothing(texts: list[str]) -> None:
    wordpiece = tokens.WordPiece(VOCABULARY)
    for text in (*texts, *texts):
        assert wordpiece.ids(text) == literal(text, VOCABULARY)


def test_a_vocabulary_without_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="UNK"):
        tokens.WordPiece(["a"])


def test_every_script_has_pieces() -> None:
    known = tokens.load_default()
    for text in ("Résumé naïve", "Привет, мир", "你好世界", "नमस्ते दुनिया", "مرحبا", "日本語テスト"):
        ids = known.ids(text)
        assert ids
        assert max(ids) < known.size
    bare = unicodedata.normalize("NFD", "resume")
    assert known.ids("Résumé") == known.ids(bare)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_GENERATION", 8)
    known = tokens.WordPiece(VOCABULARY)
    for i in range(100):
        known.ids(f"a{'b' * (i % 37)} {i}")
        assert len(known._young) <= 8
        assert len(known._old) <= 8


def test_junk_is_cheap() -> None:
    """Not a benchmark: a bound that only a quadratic or unbounded path would break."""
    noise = hashlib.sha512(b"x").digest() * 200_000
    for junk in (
        noise.hex(),
        base64.b64encode(noise).decode(),
        "a" * 10_000_000,
        "<b>" * 1_000_000,
    ):
        started = time.perf_counter()
        x = features.extract_text(junk)
        features.embed(x)
        assert time.perf_counter() - started < 0.5
        assert x.token_ids is not None
        assert len(x.token_ids) <= 1100


def test_serving_and_training_see_the_same_ids() -> None:
    talk = (
        Message("user", "Explain how a B-tree splits its pages."),
        Message("assistant", "It ..."),
        Message("user", "yes, go on"),
    )
    x = features.extract(talk)
    assert x.token_ids is not None
    assert x.token_ids.tolist() == [
        i for text in features.scored_texts(talk) for i in tokens.load_default().ids(text)
    ]
    assert features.scored_texts(talk) == ["yes, go on", "Explain how a B-tree splits its pages."]


@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 11))
def test_compiled_heads_say_what_the_vector_says(seed: int, n: int, heads: int) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 16, (300, 8)).astype(np.uint8) | (
        rng.integers(0, 16, (300, 8)).astype(np.uint8) << 4
    )
    made = embedding.StaticEmbedding(
        packed,
        rng.random(16).astype(np.float32),
        np.where(rng.random(300) < 0.1, 0, rng.random(300)).astype(np.float32),
    )
    w = rng.normal(size=(16, heads))
    ids = rng.integers(0, 300, n)
    rows = made.compile_heads(w)[ids].sum(axis=0)
    told = rows[:-1] / rows[-1] if rows[-1] > 0 else np.zeros(heads)
    assert told == pytest.approx(made.embed(ids) @ w, abs=1e-4)


def test_the_shipped_table_is_half_whitened_and_under_8_mb() -> None:
    shipped = embedding.load_default()
    assert shipped.packed.shape == (tokens.load_default().size, features.DIMENSIONS // 2)
    assert shipped.packed.nbytes + tokens.load_default().size * 4 < 8e6
    near = [features.embed(_x(t)) for t in ("Solve x^2 = 9.", "Find the roots of y^2 = 16.")]
    far = features.embed(_x("Write a lullaby for my cat."))
    assert _cosine(near[0], near[1]) > _cosine(near[0], far) + 0.2


def test_features_recorded_without_ids_or_point_cannot_be_embedded() -> None:
    x = features.extract_text("hello")
    with pytest.raises(ValueError, match="token ids"):
        features.embed(msgspec.structs.replace(x, token_ids=None))
    point = features.embed(x)
    kept = msgspec.structs.replace(x, token_ids=None, embedding=point)
    assert features.embed(kept) is point


def _x(text: str) -> features.Features:
    return features.extract_text(text)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
