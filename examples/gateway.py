"""Serve a gateway and call it with the official OpenAI client: a reply, a stream, a failover.

Run: python examples/gateway.py
In production, run `suffice serve --config suffice.toml` instead of `BackgroundServer`.
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
objective = "cheapest"
"""


def main() -> None:
    # The first call of the small model succeeds; the later ones fail with a 503.
    models = {
        "small": {"reply": "Hello.", "actions": ["ok", {"status": 503, "repeat": True}]},
        "large": {"reply": "One two three."},
    }
    with FakeUpstream({"models": models}) as fake, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "suffice.toml"
        config.write_text(CONFIG.format(folder=Path(folder).as_posix(), base_url=fake.base_url))
        with (
            BackgroundServer(config) as server,
            openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none") as client,
        ):
            raw = client.chat.completions.with_raw_response.create(
                model="auto", messages=[{"role": "user", "content": "Hi"}]
            )
            print("reply:", raw.parse().choices[0].message.content)
            for name in ("x-suffice-model", "x-suffice-reason", "x-suffice-cost-usd"):
                print(f"  {name}: {raw.headers[name]}")

            # The small model fails now. The client sees one stream, of the other model.
            stream = client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "Count"}], stream=True
            )
            text, answered_by = "", ""
            for chunk in stream:
                answered_by = chunk.model
                if chunk.choices:
                    text += chunk.choices[0].delta.content or ""
            print(f"stream of {answered_by}: {text}")


if __name__ == "__main__":
    main()
