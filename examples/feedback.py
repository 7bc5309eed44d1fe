"""Score answers: the gateway stores the score with the decision and learns from it.

Run: python examples/feedback.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import openai

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

CONFIG = """
[store]
url = "sqlite:///{folder}/suffice.db"

[providers.acme]
dialect = "openai"
base_url = "{base_url}"

[models."acme/small"]
input_usd_per_mtok = 0.15
output_usd_per_mtok = 0.60
quality = 0.6

[models."acme/large"]
input_usd_per_mtok = 2.50
output_usd_per_mtok = 10.0
quality = 0.95

[routes.auto]
models = ["acme/small", "acme/large"]
learning = "shadow"     # learn from feedback and log what would have been decided; "on" decides by it
"""
QUERIES = {"What is 2 + 2?": "4", "What is the capital of France?": "Paris"}


def main() -> None:
    models = {"small": {"reply": "4"}, "large": {"reply": "Paris"}}
    with FakeUpstream({"models": models}) as fake, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "suffice.toml"
        config.write_text(CONFIG.format(folder=Path(folder).as_posix(), base_url=fake.base_url))
        with (
            BackgroundServer(config) as server,
            openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none") as client,
        ):
            for query, expected in QUERIES.items():
                raw = client.chat.completions.with_raw_response.create(
                    model="auto", messages=[{"role": "user", "content": query}]
                )
                answer = raw.parse().choices[0].message.content or ""
                decision_id = raw.headers["x-suffice-decision-id"]
                # Your own check decides: a test that passed, a click, a judge.
                score = 1.0 if expected in answer else 0.0
                client.post(
                    "/feedback",
                    cast_to=object,
                    body={"decision_id": decision_id, "score": score, "source": "example"},
                )
                decision = client.get(f"/decisions/{decision_id}", cast_to=object)
                assert isinstance(decision, dict)
                print(f"{query} {decision['chosen']}: {answer!r} scored {score}")
                for candidate in decision["predictions"]:
                    print(f"  {candidate['model']}: predicted quality {candidate['quality']:.2f}")


if __name__ == "__main__":
    main()
