"""Rollouts: a policy's path through recorded conversations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.logged_traffic import EVEN, STRONG, WEAK
from tests.support.replay_workspace import ReplayWorkspace, conversation, request

from suffice import features
from suffice.errors import JobError
from suffice.lab.ope.rollout import EvaluationPolicySetup
from suffice.types import Candidate, Decision, Features, Message, Objective, Policy, Session


class ConstantShares:
    """Chooses every model with the same probability; `sticky`: keeps a conversation's model."""

    name, version = "constant", "constant-1"

    def __init__(self, share: float = 0.5, sticky: bool = False) -> None:
        self.share = share
        self.sticky = sticky

    def decide(
        self,
        x: Features,
        candidates: tuple[Candidate, ...],
        objective: Objective,
        session: Session | None = None,
        **_: object,
    ) -> Decision:
        incumbent = session.incumbent if session is not None and self.sticky else None
        shares = {
            c.model.name: self.share if incumbent is None else float(c.model.name == incumbent)
            for c in candidates
        }
        return request(0, WEAK, shares).decision


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[ReplayWorkspace]:
    made = ReplayWorkspace(tmp_path)
    yield made
    made.store.close()


def test_later_turns_inherit_the_propensity_of_the_first(workspace: ReplayWorkspace) -> None:
    n = 0
    for s in range(30):
        chosen = STRONG if s % 3 == 0 else WEAK
        workspace.add(
            request(n, chosen, {WEAK: 0.8, STRONG: 0.2}, conversation("Hello."), session=f"s{s}"),
            1.0,
        )
        other = WEAK if chosen == STRONG else STRONG
        for t in (1, 2):
            talk = conversation(*["Hello."] * (t + 1))
            workspace.add(
                request(n + t, chosen, {chosen: 1.0, other: 0.0}, talk, session=f"s{s}"), 1.0
            )
        n += 3
    rollout = workspace.roll_out(workspace.setup("best"))
    assert rollout.log.propensity == pytest.approx(
        [0.2 if s % 3 == 0 else 0.8 for s in range(30) for _ in range(3)]
    )
    assert len(np.unique(rollout.log.episodes)) == len(np.unique(rollout.log.sessions)) == 30
    strong = rollout.models.index(STRONG)
    assert rollout.action_dist[:, strong] == pytest.approx(np.ones(90))
    w = rollout.action_dist[np.arange(90), rollout.log.action] / rollout.log.propensity
    assert w.reshape(30, 3)[0] == pytest.approx([5.0, 5.0, 5.0])
    assert w.reshape(30, 3)[1] == pytest.approx([0.0, 0.0, 0.0])


def test_the_incumbent_is_the_policys_own_earlier_choice(workspace: ReplayWorkspace) -> None:
    """The log used the strong model. The policy starts on the weak one and keeps it while tools
    answer, although the log's incumbent is another."""
    workspace.add(request(0, STRONG, EVEN, conversation("Hello."), session="s"), 1.0)
    first = Message("user", "Hello.")
    loop = features.extract(
        (
            first,
            Message("assistant", "", tool_calls=1),
            Message("tool", "42 " * 50, is_tool_result=True),
        )
    )
    workspace.add(request(1, STRONG, {WEAK: 0.0, STRONG: 1.0}, loop, session="s"), 1.0)
    rollout = workspace.roll_out(workspace.setup("default"))
    weak = rollout.models.index(WEAK)
    assert rollout.action_dist[:, weak] == pytest.approx([1.0, 1.0])
    assert rollout.log.propensity == pytest.approx([0.5, 0.5])


def test_a_mixed_policy_keeps_its_mix_through_a_conversation(workspace: ReplayWorkspace) -> None:
    """Half of its conversations are on each model, and so are half of all their turns."""
    workspace.add(request(0, WEAK, EVEN, conversation("Hello."), session="s"))
    workspace.add(
        request(1, WEAK, {WEAK: 1.0, STRONG: 0.0}, conversation("Hello.", "Go on."), session="s")
    )
    workspace.flush()
    setup = workspace.setup("default")

    def with_policy(policy: Policy) -> EvaluationPolicySetup:
        return EvaluationPolicySetup(
            {"auto": policy}, setup.objectives, setup.catalog, {}, lambda: policy
        )

    rollout = workspace.roll_out(with_policy(ConstantShares(sticky=True)))
    assert rollout.action_dist == pytest.approx(np.full((2, 2), 0.5))
    with pytest.raises(JobError, match="sum to 1"):
        workspace.roll_out(with_policy(ConstantShares(share=1.0)))


def test_the_same_first_message_starts_a_new_conversation(workspace: ReplayWorkspace) -> None:
    """The key is a hash of the first message; each of the four conversations made a choice."""
    for i in range(4):
        workspace.add(request(i, (WEAK, STRONG)[i % 2], EVEN, session="hash"), 1.0)
    rollout = workspace.roll_out(workspace.setup("best"))
    assert len(np.unique(rollout.log.episodes)) == 4
    assert len(np.unique(rollout.log.sessions)) == 1
    assert rollout.log.propensity == pytest.approx([0.5] * 4)


def test_an_idle_conversation_starts_again(workspace: ReplayWorkspace) -> None:
    talk = conversation("Hello.", "Go on.")
    workspace.add(request(0, WEAK, EVEN, session="s"))
    workspace.add(
        request(1, WEAK, {WEAK: 1.0, STRONG: 0.0}, talk, session="s", created_s=1_010_000.0)
    )
    rollout = workspace.roll_out(workspace.setup("best"))
    assert rollout.log.propensity == pytest.approx([0.5, 1.0])
