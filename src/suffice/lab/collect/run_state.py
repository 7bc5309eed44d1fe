"""What the ledger says of a query: each model's answer, its score, and what is still to be asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from suffice.lab.collect import judge as judging
from suffice.lab.collect.calls import Ask
from suffice.lab.collect.journal import Answer, Ledger, key_of
from suffice.lab.collect.judge import PairwiseScore
from suffice.lab.collect.queries import Pool
from suffice.lab.collect.scorers import Scorer
from suffice.types import Message, Model


@dataclass(frozen=True)
class ScoredAnswer:
    """What one model made of one query. score None = unknown, and `note` says why."""

    model: str
    answer: Answer | None
    score: float | None
    note: str | None = None
    verdicts: tuple[str, ...] = ()
    contradicts: bool = False


@dataclass
class RunState:
    """Rows of a pool, seen through a ledger.

    judge: compares with `reference`, or grades where there is one model only. known_good: the judge
    is shown the expected answer.
    """

    pool: Pool
    ledger: Ledger
    models: tuple[Model, ...]
    scorer: Scorer | None
    judge: Model | None
    reference: str | None
    temperature: float | None
    max_output_tokens: int
    judge_max_output_tokens: int
    known_good: bool = False
    _scores: dict[tuple[int, str], float | None] = field(default_factory=dict)

    def ask(self, i: int, model: Model) -> Ask:
        pool = self.pool
        parameters = (self.temperature, self.max_output_tokens)
        return Ask(
            key=key_of(model.name, pool.messages[i], *parameters),
            query_id=pool.ids[i],
            model=model,
            messages=pool.messages[i],
            canonical=pool.table.messages[i],
            needs=pool.needs(i),
            temperature=self.temperature,
            max_output_tokens=self.max_output_tokens,
        )

    def answer(self, i: int, model: Model) -> Answer | None:
        return self.ledger.answers.get(self.ask(i, model).key)

    # ── the judge ────────────────────────────────────────────────────────────────────────────────

    def verdict_asks(self, i: int, model: Model) -> tuple[Ask, ...]:
        """The calls of the judge on this model's answer; none where none are needed, or where the
        answers they are about are missing."""
        answer = self.answer(i, model)
        if self.judge is None or answer is None or model.name == self.reference:
            return ()
        good = self._known_good(i)
        messages = self.pool.table.messages[i]
        if self.reference is None:
            if not answer.text.strip():
                return ()
            return (self._judge_ask(i, judging.grade(messages, answer.text, good)),)
        other = self._reference_answer(i)
        if other is None or judging.trivial_score(answer.text, other.text) is not None:
            return ()
        a, b = answer.text, other.text
        return tuple(
            self._judge_ask(i, judging.compare(messages, x, y, good)) for x, y in ((a, b), (b, a))
        )

    def _judge_ask(self, i: int, chat: judging.Chat) -> Ask:
        assert self.judge is not None
        messages = msgspec.json.encode(chat)
        read = judging.read_grade if self.reference is None else judging.read_verdict
        return Ask(
            key=key_of(self.judge.name, messages, 0.0, self.judge_max_output_tokens),
            query_id=self.pool.ids[i],
            model=self.judge,
            messages=messages,
            canonical=tuple(Message(m["role"], m["content"]) for m in chat),
            needs=frozenset(),
            temperature=0.0,
            max_output_tokens=self.judge_max_output_tokens,
            purpose=judging.PROMPT_VERSION,
            read=read,
        )

    def _known_good(self, i: int) -> str | None:
        value = self.pool.expected[i] if self.known_good else None
        return None if value is None else str(value)

    def _reference_answer(self, i: int) -> Answer | None:
        model = next((m for m in self.models if m.name == self.reference), None)
        return None if model is None else self.answer(i, model)

    def _judged(self, i: int, model: Model, answer: Answer) -> PairwiseScore:
        if self.reference is None:
            if not answer.text.strip():
                return PairwiseScore(0.0)
        else:
            other = self._reference_answer(i)
            if other is None:
                return PairwiseScore(None, reason="the reference model gave no answer")
            if model.name == self.reference:
                plain = judging.trivial_score("-", other.text)
                return plain if plain is not None else PairwiseScore(1.0)
            plain = judging.trivial_score(answer.text, other.text)
            if plain is not None:
                return plain
        asks = self.verdict_asks(i, model)
        replies = [self.ledger.answers.get(a.key) for a in asks]
        texts = [r.text for r in replies if r is not None]
        if len(texts) < len(asks):
            return PairwiseScore(None, reason="the judge was not asked, or gave no answer")
        if self.reference is None:
            grade = judging.read_grade(texts[0])
            if grade is None:
                return PairwiseScore(None, reason="the judge's grade cannot be read")
            return PairwiseScore(grade / 4, (str(grade),))
        return judging.score_verdicts(
            judging.read_verdict(texts[0]), judging.read_verdict(texts[1])
        )

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    def score(self, i: int, model: Model) -> float | None:
        """By the scorer, once for each answer. Raises UsageError where a user's function fails."""
        answer = self.answer(i, model)
        if self.scorer is None or answer is None:
            return None
        at = (i, model.name)
        if at not in self._scores:
            self._scores[at] = self.scorer.score(i, answer.text)
        return self._scores[at]

    def cell(self, i: int, model: Model) -> ScoredAnswer:
        answer = self.answer(i, model)
        if answer is None:
            failed = self.ledger.failures.get(self.ask(i, model).key)
            return ScoredAnswer(model.name, None, None, failed.error if failed else "not asked")
        if self.judge is not None:
            found = self._judged(i, model, answer)
            return ScoredAnswer(
                model.name, answer, found.score, found.reason, found.verdicts, found.is_inconsistent
            )
        if self.scorer is None:
            return ScoredAnswer(model.name, answer, None, "no scorer")
        score = self.score(i, model)
        return ScoredAnswer(
            model.name, answer, score, None if score is not None else "the scorer cannot say"
        )

    def cells(self, i: int) -> tuple[ScoredAnswer, ...]:
        return tuple(self.cell(i, m) for m in self.models)

    def asked(self, i: int) -> bool:
        """Whether any model was asked query i, with an answer or without."""
        keys = [self.ask(i, m).key for m in self.models]
        return any(k in self.ledger.answers or k in self.ledger.failures for k in keys)

    def missing(self, i: int) -> list[Model]:
        return [m for m in self.models if self.answer(i, m) is None]

    def unjudged(self, i: int) -> list[Ask]:
        """Calls of the judge that answers at hand ask for and the ledger lacks."""
        return [
            a
            for m in self.models
            for a in self.verdict_asks(i, m)
            if a.key not in self.ledger.answers
        ]

    def done(self, i: int) -> bool:
        return not self.missing(i) and not self.unjudged(i)

    def verdict_count(self) -> int:
        """Calls of the judge for one query at most."""
        if self.judge is None:
            return 0
        return 1 if self.reference is None else 2 * (len(self.models) - 1)

    def answers_of(self, name: str, judging_: bool) -> Iterator[Answer]:
        """Answers of a model in the ledger: as one that is judged, or as the judge."""
        for a in self.ledger.answers.values():
            if a.model == name and (a.purpose != "answer") == judging_:
                yield a
