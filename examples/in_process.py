"""Route queries in-process: the OpenAI client's shape, no server.

Run: python examples/in_process.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from suffice import Client, Router
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
objective = {{ keep_quality = 0.95 }}
"""
QUERIES = ("What's the weather today?", "Prove that there are infinitely many primes.")


def main() -> None:
    models = {"small": {"reply": "Sunny."}, "large": {"reply": "Suppose there were finitely many."}}
    with FakeUpstream({"models": models}) as fake, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "suffice.toml"
        config.write_text(CONFIG.format(folder=Path(folder).as_posix(), base_url=fake.base_url))

        # `route` evaluates and selects; it calls no model.
        router = Router.from_config(config)
        for query in QUERIES:
            decision = router.route([{"role": "user", "content": query}])
            print(f"{query} -> {decision.model}: {decision.reason}")
        router.close()

        # `Client` also calls the model. It is the official client, so everything of it works.
        with Client(config) as client:
            for query in QUERIES:
                reply = client.chat.completions.create(
                    model="auto", messages=[{"role": "user", "content": query}]
                )
                print(f"{reply.model}: {reply.choices[0].message.content}")


if __name__ == "__main__":
    main()
