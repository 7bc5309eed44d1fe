"""Text becomes finite, bounded numbers that white space and harness text do not change."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice import features
from suffice.features import SIGNAL_NAMES, extract, extract_text
from suffice.types import Message

MESSAGE = slice(0, SIGNAL_NAMES.index("log_prompt_tokens"))


@given(st.text(max_size=3000))
def test_any_text_gives_finite_numbers(text: str) -> None:
    x = extract_text(text)
    assert x.signals.dtype == np.float32
    assert x.signals.shape == (len(SIGNAL_NAMES),)
    assert np.isfinite(x.signals).all()
    assert (x.signals >= 0).all()
    assert x.input_tokens >= 1
    features.explain(x)


WORDS = st.lists(
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), min_size=1, max_size=30
)


@given(WORDS, st.lists(st.sampled_from([" ", "  ", "\n", "\t", " \n "]), min_size=40, max_size=40))
def test_white_space_and_wrapping_change_nothing(words: list[str], gaps: list[str]) -> None:
    plain = extract_text(" ".join(words))
    wrapped = extract_text("".join(w + g for w, g in zip(words, gaps, strict=False)) + "\n\n  ")
    keep = [i for i, n in enumerate(SIGNAL_NAMES[MESSAGE]) if n != "lines"]
    assert np.array_equal(plain.signals[keep], wrapped.signals[keep])


@given(st.text(st.characters(exclude_characters="<>`"), max_size=400))
def test_harness_text_does_not_change_the_signals(noise: str) -> None:
    ask = "Rename the function load to load_config everywhere."
    wrapped = f"<system-reminder>{noise}</system-reminder>\n{ask}"
    bare = extract((Message("user", ask),))
    noisy = extract(
        (
            Message("system", "You are an agent. " * 200),
            Message("user", wrapped),
            Message("assistant", "", tool_calls=1),
            Message("tool", noise, is_tool_result=True),
        )
    )
    pasted = SIGNAL_NAMES.index("log_pasted")
    assert np.array_equal(np.delete(bare.signals[MESSAGE], []), noisy.signals[MESSAGE])
    assert noisy.signals[pasted] == bare.signals[pasted] == 0  # counted as harness, not as material
    assert noisy.in_tool_loop
    assert noisy.context_chars > 3000


@pytest.mark.parametrize(
    "template",
    [
        "{}  \n\n",
        "Question: {}",
        "User: {}",
        "{}\nAnswer:",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<s>[INST] {} [/INST]",
        "### Instruction:\n{}\n\n### Response:\n",
        "{}\n\n<system-reminder>\nNothing is open.\n</system-reminder>",
    ],
)
@given(
    st.lists(
        st.sampled_from(["Prove", "that", "x^2", "is", "even;", "why?\r\n\r\n", "(a)"]), min_size=1
    )
)
def test_template_marks_change_no_signal(template: str, words: list[str]) -> None:
    ask = " ".join([*words, "now"])
    bare, noisy = extract_text(ask), extract_text(template.format(ask))
    keep = [i for i, n in enumerate(SIGNAL_NAMES) if n != "log_prompt_tokens"]
    assert np.array_equal(bare.signals[keep], noisy.signals[keep])
    assert np.array_equal(bare.token_ids, noisy.token_ids)


def test_tagged_material_counts_as_pasted() -> None:
    x = extract_text("<document>\n" + "a report " * 50 + "</document>\nSummarise it in a line.")
    assert x.signals[SIGNAL_NAMES.index("log_pasted")] > 6


def test_the_rest_of_the_conversation_cannot_decide_in_a_learned_head() -> None:
    mean, std = features.feature_scaler()
    for name in ("log_prompt_tokens", "turns", "tools"):
        i = SIGNAL_NAMES.index(name)
        assert abs((12.0 - mean[i]) / std[i]) < 1e-6


@pytest.mark.parametrize(
    "text",
    ["A" * 10_000_000, "0123456789abcdef" * 600_000, "<context>" * 1_000_000, "```\n" * 500_000,
     ("<" * 100 + "x" * 1000 + "</context>") * 9000, "\\frac{" * 1_000_000,
     "<|im_start|>" * 800_000, "### Instruction" * 600_000, "[INST]" * 1_000_000 + ":",],
)  # fmt: skip
def test_work_on_adversarial_text_is_bounded(text: str) -> None:
    began = time.process_time()
    extract_text(text)
    # A generous sanity bound, a hundred times what it takes: quadratic work would take minutes.
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    "follow",
    ["yes, go ahead", "continue", "ja, bitte", "да, давай", "好的", "and in French?", "do it"],
)
def test_a_follow_up_inherits_the_signals_before_it(follow: str) -> None:
    proof = "Prove that every bounded sequence of real numbers has a convergent subsequence."
    alone = extract_text(proof)
    x = extract((Message("user", proof), Message("assistant", "Shall I?"), Message("user", follow)))
    assert x.follow_up
    math = SIGNAL_NAMES.index("math")
    assert x.signals[math] == alone.signals[math] > 0
    assert x.signals[0] >= alone.signals[0]


def test_a_new_question_does_not_inherit() -> None:
    x = extract(
        (
            Message("user", "Prove that the square root of 2 is irrational."),
            Message("assistant", "Suppose not ..."),
            Message("user", "Which films were on at the cinema in Oslo last week?"),
        )
    )
    assert not x.follow_up


def test_longer_is_never_shorter() -> None:
    lengths = [extract_text("word " * n).signals[0] for n in (1, 10, 100, 1000, 10_000)]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) == 5
