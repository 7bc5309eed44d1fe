"""Text to WordPiece ids to a vector: correct, bounded, the same for serving and training."""

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
from suffice.features.wordpiece import WordPiece
from suffice.types import Message

VOCABULARY = ["[UNK]", *"abcdefghij", "ab", "abc", "##a", "##b", "##bc", "##cd", "##j", "!", "?"]


def literal(text: str, vocabulary: list[str]) -> list[int]:
    """Wu et al. 2016, section 4.1, word by word as written; ASCII only."""
    ids = {p: i for i, p in enumerate(vocabulary)}
    expected: list[int] = []
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()):
        pieces, start = [], 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:stop]
                if piece in ids:
                    pieces.append(ids[piece])
                    start = stop
                    break
            else:
                pieces, start = [ids["[UNK]"]], len(word)
        expected += pieces
    return expected


@given(st.lists(st.text("abcdj!? ", max_size=12), max_size=8))
def test_pieces_are_the_longest_that_fit_and_the_cache_changes_nothing(texts: list[str]) -> None:
    wordpiece = WordPiece(VOCABULARY)
    for text in (*texts, *texts):
        assert wordpiece.ids(text) == literal(text, VOCABULARY)


def test_a_vocabulary_without_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="UNK"):
        WordPiece(["a"])


def test_every_script_has_pieces() -> None:
    wordpiece = features.tokenizer()
    for text in ("Résumé naïve", "Привет, мир", "你好世界", "नमस्ते दुनिया", "مرحبا", "日本語テスト"):
        ids = wordpiece.ids(text)
        assert ids
        assert max(ids) < wordpiece.size
    bare = unicodedata.normalize("NFD", "resume")
    assert wordpiece.ids("Résumé") == wordpiece.ids(bare)


def test_the_cache_is_bounded() -> None:
    wordpiece = WordPiece(VOCABULARY, generation=8)
    for i in range(100):
        wordpiece.ids(f"a{'b' * (i % 37)} {i}")
        assert wordpiece.n_cached <= 16


@given(st.lists(st.text("ab. ", max_size=9), min_size=1, max_size=40))
def test_signals_of_chunks_survive_a_change_of_generation(texts: list[str]) -> None:
    wordpiece = WordPiece(VOCABULARY, lambda chunk: (3,) * chunk.count("."), generation=2)
    for text in texts:
        assert wordpiece.read(text.split())[1] == b"\x03" * text.count(".")


def test_the_work_on_random_text_is_bounded() -> None:
    # Not a benchmark: only quadratic or unbounded work exceeds it.
    noise = hashlib.sha512(b"x").digest() * 200_000
    for junk in (
        noise.hex(),
        base64.b64encode(noise).decode(),
        "a" * 10_000_000,
        "<b>" * 1_000_000,
    ):
        started = time.process_time()
        x = features.extract_text(junk)
        features.embed(x)
        assert time.process_time() - started < 1.0
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
        i for text in features.scored_texts(talk) for i in features.tokenizer().ids(text)
    ]
    assert features.scored_texts(talk) == ["yes, go on", "Explain how a B-tree splits its pages."]


@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 11))
def test_compiled_heads_equal_the_heads_of_the_vector(seed: int, n: int, heads: int) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 16, (300, 8)).astype(np.uint8) | (
        rng.integers(0, 16, (300, 8)).astype(np.uint8) << 4
    )
    table = embedding.StaticEmbedding(
        packed,
        rng.random(16).astype(np.float32),
        np.where(rng.random(300) < 0.1, 0, rng.random(300)).astype(np.float32),
    )
    w = rng.normal(size=(16, heads))
    ids = rng.integers(0, 300, n)
    rows = table.compile_heads(w)[ids].sum(axis=0)
    folded = rows[:-1] / rows[-1] if rows[-1] > 0 else np.zeros(heads)
    assert folded == pytest.approx(table.embed(ids) @ w, abs=1e-4)


def test_the_shipped_table_is_half_whitened_and_under_8_mb() -> None:
    table = embedding.load_default()
    assert table.packed.shape == (features.tokenizer().size, features.DIMENSIONS // 2)
    assert table.packed.nbytes + features.tokenizer().size * 4 < 8e6
    near = [features.embed(_x(t)) for t in ("Solve x^2 = 9.", "Find the roots of y^2 = 16.")]
    far = features.embed(_x("Write a lullaby for my cat."))
    assert _cosine(near[0], near[1]) > _cosine(near[0], far) + 0.2


def test_features_recorded_without_ids_or_point_cannot_be_embedded() -> None:
    x = features.extract_text("hello")
    with pytest.raises(ValueError, match="token ids"):
        features.embed(msgspec.structs.replace(x, token_ids=None))
    point = features.embed(x)
    recorded = msgspec.structs.replace(x, token_ids=None, embedding=point)
    assert features.embed(recorded) is point


def _x(text: str) -> features.Features:
    return features.extract_text(text)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
