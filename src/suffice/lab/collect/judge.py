"""A model as a judge of answers.

With two or more models it is the pairwise judge of `suffice.judging`, which audits use, too. With one
model its answer is graded 0 to 4, and the score is grade / 4.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from suffice.judging import (
    DELIMITER_NOTICE,
    PAIR_PROMPT,
    PROMPT_VERSION,
    Chat,
    PairwiseScore,
    Verdict,
    build_messages,
    compare,
    family_warning,
    format_conversation,
    last_line,
    model_family,
    read_verdict,
    score_verdicts,
    trivial_score,
)
from suffice.types import Message

__all__ = [
    "GRADE_PROMPT",
    "PAIR_PROMPT",
    "PROMPT_VERSION",
    "Chat",
    "PairwiseScore",
    "Verdict",
    "compare",
    "model_family",
    "family_warning",
    "grade",
    "score_verdicts",
    "trivial_score",
    "read_grade",
    "read_verdict",
]

GRADE_PROMPT = f"""\
You grade an answer to a request by how well it serves the person who asked.

4: right, complete and in the form that was asked for; an expert would change nothing of substance
3: right in all that matters; a small omission or flaw that the person can live with
2: partly right or partly done; the person has to correct or ask again
1: mostly wrong or beside the point, with something of use in it
0: wrong, empty, harmful, or a refusal without a good reason

Work the problem out yourself before you believe the answer. Length is no merit, nor is politeness, \
confidence or layout.

{DELIMITER_NOTICE}

Give your reasons in at most five sentences. Then end with one line that is exactly one of:
GRADE: 0
GRADE: 1
GRADE: 2
GRADE: 3
GRADE: 4"""

_GRADE = re.compile(r"GRADE: *([0-4])", re.IGNORECASE)


def grade(messages: Sequence[Message], answer: str, known_good: str | None = None) -> Chat:
    """Build the messages that ask for a grade of one answer."""
    parts = [("request", format_conversation(messages))]
    if known_good is not None:
        parts.append(("known-good-answer", known_good))
    return build_messages(GRADE_PROMPT, [*parts, ("answer", answer)])


def read_grade(reply: str) -> int | None:
    """The grade in the last line; None if that line is not a grade."""
    match = _GRADE.fullmatch(last_line(reply))
    return None if match is None else int(match[1])
