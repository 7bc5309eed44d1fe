"""Single signals: the stem of a multiple choice, the share of stop words."""

from __future__ import annotations

import textwrap
import time
from math import log1p

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice import features
from suffice.features import SIGNAL_NAMES, extract_text
from suffice.features.signals import question_stem_chars
from suffice.features.user_message import UserMessage, clean

STEM = "Which gas do plants take up when they make sugar?"


def signal(name: str, text: str) -> float:
    return float(extract_text(text).signals[SIGNAL_NAMES.index(name)])


@pytest.mark.parametrize("style", ["{}. ", "{}) ", "({}) "])
@pytest.mark.parametrize("gap", ["\n", "\n\n", " ", "   \n\t"])
def test_the_stem_ends_where_the_options_begin(style: str, gap: str) -> None:
    options = ["Oxygen", "Nitrogen", "Carbon dioxide"]
    lines = [style.format(letter) + o for letter, o in zip("ABC", options, strict=True)]
    assert question_stem_chars(clean(gap.join([STEM, *lines]))) == len(STEM)


@pytest.mark.parametrize(
    "text",
    [
        STEM,
        "",
        "A. Oxygen B. Nitrogen",  # nothing before the first option
        "Name a source of vitamin A. Then name one of zinc.",  # no second option
        "What is B. better than? Is it A. or not?",  # not in order
        "Sort them: A. first, B) second.",  # two styles
        "Show that (a) it is odd (b) it is prime.",  # parts of a task, all to be done
        "Compare USA. and B. Look at MIA. too.",  # the end of a word
    ],
)
def test_without_options_the_stem_is_the_whole_message(text: str) -> None:
    assert signal("stem", text) == signal("log_chars", text)


def test_a_letter_at_the_end_of_a_sentence_is_not_an_option() -> None:
    text = "Too little vitamin A. What follows first?\nA. Night blindness\nB. Scurvy\nC. Rickets"
    assert question_stem_chars(clean(text)) == text.index("\n")


def test_an_option_may_be_empty() -> None:
    assert question_stem_chars(clean("Choose one.\nA. \nB. \nC. ")) == len("Choose one.")


def test_the_stem_of_a_long_message_counts_the_part_that_was_cut() -> None:
    stem = "The reactor heats up slowly. " * 200 + "What is done first?"
    assert question_stem_chars(clean(f"{stem}\nA. Nothing\nB. Rods are lowered")) == len(stem)


def test_options_in_the_first_half_of_a_long_message_end_the_stem() -> None:
    text = f"{STEM}\nA. Oxygen\nB. Nitrogen\n" + "Explain your choice at length. " * 200
    assert question_stem_chars(clean(text)) == len(STEM)


OPTIONS = st.lists(
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12), min_size=2, max_size=10
)


@given(OPTIONS, st.sampled_from(["{}. ", "{}) ", "({}) "]), st.integers(12, 90))
def test_wrapping_does_not_move_the_stem(options: list[str], style: str, width: int) -> None:
    lines = [style.format(chr(65 + i)) + o for i, o in enumerate(options)]
    text = "\n".join([STEM + " It costs $3 of $10.", *lines])
    wrapped = "  \n".join(textwrap.wrap(text, width)) + " \n\n"
    for name in ("stem", "stop_words"):
        assert signal(name, wrapped) == signal(name, text), name


@given(st.text(st.sampled_from("AB.() \n$x"), max_size=3000))
def test_the_stem_is_within_the_message(text: str) -> None:
    message = clean(text)
    assert 0 <= question_stem_chars(message) <= message.chars
    x = extract_text(text).signals
    assert 0 <= x[SIGNAL_NAMES.index("stop_words")] <= 1
    assert x[SIGNAL_NAMES.index("stem")] <= x[0]


@pytest.mark.parametrize(
    "text", [" A. " * 1_000_000, " A. x B) " * 500_000, " (A) " * 500_000 + " (B) ", " B. " * 10**6]
)
def test_work_on_adversarial_options_is_bounded(text: str) -> None:
    message = clean(text)
    assert len(message.text) <= 1025
    began = time.process_time()
    for _ in range(100):
        question_stem_chars(message)
    # A generous sanity bound, a hundred times what it takes.
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("the of and", 1.0),
        ("The, (of) AND!", 1.0),
        ("the red of house", 0.5),
        ("das Haus ist rot", 0.5),
        ("дом и сад не", 0.5),
        ("red house", 0.0),
        ("the-red-house", 0.0),  # one chunk of several words
        ("", 0.0),
    ],
)
def test_stop_words_are_a_share_of_chunks(text: str, share: float) -> None:
    assert signal("stop_words", text) == pytest.approx(share)


def test_an_explanation_has_the_length_once() -> None:
    explained = dict(features.explain(extract_text(f"{STEM}\nA. Oxygen is 3\nB. Nitrogen"), top=50))
    assert "digits" in explained
    assert "stem" not in explained
    assert "stop_words" not in explained


def test_the_stem_of_a_message_with_an_unread_middle_is_within_it() -> None:
    text = "x" * 512 + "\n" + "y A. one B. two".ljust(512)
    message = UserMessage(text, 2_000_000, 0, 0, False, text.split())
    assert question_stem_chars(message) == 514 + 2_000_000 - len(text)
    assert np.isfinite(log1p(question_stem_chars(message)))


@pytest.mark.parametrize("ask", ["What is 2 + 2?\n", "Name them:\n- one\n\n- two\n"])
@pytest.mark.parametrize("noise", ["{}\nAnswer:", "{}\n\nAnswer:\n\nResponse:", "Question:\n\n{}"])
def test_blank_lines_of_a_template_are_not_structure(ask: str, noise: str) -> None:
    assert clean(noise.format(ask)) == clean(ask)
