"""What the journal knows of each query: answers, scores, and the calls still to be made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from suffice.lab.collect import judge as judging
from suffice.lab.collect.calls import PlannedCall
from suffice.lab.collect.journal import Answer, CallJournal, key_of
from suffice.lab.collect.judge import PairwiseScore
from suffice.lab.collect.queries import QueryPool
from suffice.lab.collect.scorers import Scorer
from suffice.types import Message, Model


@dataclass(frozen=True)
class ScoredAnswer:
    """The answer of one model to one query."""

    model: str
    answer: Answer | None
    score: float | None  # None = unknown
    note: str | None = None  # why the score is unknown
    verdicts: tuple[str, ...] = ()
    contradicts: bool = False


@dataclass
class RunState:
    """The state of a run: the rows of a pool and what the journal knows of them."""

    pool: QueryPool
    journal: CallJournal
    models: tuple[Model, ...]
    scorer: Scorer | None
    judge: Model | None  # compares with `reference`, or grades if there is only one model
    reference: str | None
    temperature: float | None
    max_output_tokens: int
    judge_max_output_tokens: int
    show_expected: bool = False  # whether the judge sees the expected answer
    _scores: dict[tuple[int, str], float | None] = field(default_factory=dict)

    def model_call(self, i: int, model: Model) -> PlannedCall:
        """The call of a model for query i."""
        pool = self.pool
        parameters = (self.temperature, self.max_output_tokens)
        return PlannedCall(
            key=key_of(model.name, pool.messages[i], *parameters),
            query_id=pool.ids[i],
            model=model,
            messages=pool.messages[i],
            canonical=pool.table.messages[i],
            required_capabilities=pool.required_capabilities(i),
            temperature=self.temperature,
            max_output_tokens=self.max_output_tokens,
        )

    def answer(self, i: int, model: Model) -> Answer | None:
        """The answer of a model to query i, if there is one."""
        return self.journal.answers.get(self.model_call(i, model).key)

    # ── the judge ────────────────────────────────────────────────────────────────────────────────

    def judge_calls(self, i: int, model: Model) -> tuple[PlannedCall, ...]:
        """The judge's calls for this model's answer.

        Returns:
            The calls; empty if none is needed, or if the answers they compare are missing.
        """
        answer = self.answer(i, model)
        if self.judge is None or answer is None or model.name == self.reference:
            return ()
        expected = self._expected_text(i)
        messages = self.pool.table.messages[i]
        if self.reference is None:
            if not answer.text.strip():
                return ()
            return (self._judge_call(i, judging.grade(messages, answer.text, expected)),)
        other = self._reference_answer(i)
        if other is None or judging.trivial_score(answer.text, other.text) is not None:
            return ()
        a, b = answer.text, other.text
        return tuple(
            self._judge_call(i, judging.compare(messages, x, y, expected))
            for x, y in ((a, b), (b, a))
        )

    def _judge_call(self, i: int, chat: judging.Chat) -> PlannedCall:
        assert self.judge is not None
        messages = msgspec.json.encode(chat)
        read = judging.read_grade if self.reference is None else judging.read_verdict
        return PlannedCall(
            key=key_of(self.judge.name, messages, 0.0, self.judge_max_output_tokens),
            query_id=self.pool.ids[i],
            model=self.judge,
            messages=messages,
            canonical=tuple(Message(m["role"], m["content"]) for m in chat),
            required_capabilities=frozenset(),
            temperature=0.0,
            max_output_tokens=self.judge_max_output_tokens,
            purpose=judging.PROMPT_VERSION,
            read=read,
        )

    def _expected_text(self, i: int) -> str | None:
        value = self.pool.expected[i] if self.show_expected else None
        return None if value is None else str(value)

    def _reference_answer(self, i: int) -> Answer | None:
        model = next((m for m in self.models if m.name == self.reference), None)
        return None if model is None else self.answer(i, model)

    def _judge_score(self, i: int, model: Model, answer: Answer) -> PairwiseScore:
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
        calls = self.judge_calls(i, model)
        replies = [self.journal.answers.get(call.key) for call in calls]
        texts = [r.text for r in replies if r is not None]
        if len(texts) < len(calls):
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
        """The score by the scorer, computed once per answer.

        Args:
            i: The query.
            model: The model.

        Returns:
            The score; None without a scorer or an answer.
        """
        answer = self.answer(i, model)
        if self.scorer is None or answer is None:
            return None
        key = (i, model.name)
        if key not in self._scores:
            self._scores[key] = self.scorer.score(i, answer.text)
        return self._scores[key]

    def scored_answer(self, i: int, model: Model) -> ScoredAnswer:
        """The answer of a model to query i with its score."""
        answer = self.answer(i, model)
        if answer is None:
            failed = self.journal.failures.get(self.model_call(i, model).key)
            return ScoredAnswer(model.name, None, None, failed.error if failed else "not asked")
        if self.judge is not None:
            judged = self._judge_score(i, model, answer)
            return ScoredAnswer(
                model.name,
                answer,
                judged.score,
                judged.reason,
                judged.verdicts,
                judged.is_inconsistent,
            )
        if self.scorer is None:
            return ScoredAnswer(model.name, answer, None, "no scorer")
        score = self.score(i, model)
        return ScoredAnswer(
            model.name, answer, score, None if score is not None else "the scorer cannot say"
        )

    def scored_answers(self, i: int) -> tuple[ScoredAnswer, ...]:
        """The answers of all models to query i."""
        return tuple(self.scored_answer(i, m) for m in self.models)

    def was_asked(self, i: int) -> bool:
        """Whether any model was asked query i, with or without an answer."""
        keys = [self.model_call(i, m).key for m in self.models]
        return any(k in self.journal.answers or k in self.journal.failures for k in keys)

    def unanswered_models(self, i: int) -> list[Model]:
        """The models without an answer to query i."""
        return [m for m in self.models if self.answer(i, m) is None]

    def pending_judge_calls(self, i: int) -> list[PlannedCall]:
        """The judge's calls that are possible and not yet answered."""
        return [
            a
            for m in self.models
            for a in self.judge_calls(i, m)
            if a.key not in self.journal.answers
        ]

    def is_complete(self, i: int) -> bool:
        """Whether no call is missing for query i."""
        return not self.unanswered_models(i) and not self.pending_judge_calls(i)

    def max_judge_calls(self) -> int:
        """The most calls of the judge that one query can need."""
        if self.judge is None:
            return 0
        return 1 if self.reference is None else 2 * (len(self.models) - 1)

    def answers_of(self, name: str, as_judge: bool) -> Iterator[Answer]:
        """The answers of a model in the journal, as a judge or as a judged model."""
        for a in self.journal.answers.values():
            if a.model == name and (a.purpose != "answer") == as_judge:
                yield a
