"""Runs TensorZero's gateway inside this process, the form that its wheel has, on a port it chooses.

Usage: python tensorzero_gateway.py CONFIG PORT_FILE
"""

import os
import signal
import sys
import warnings
from pathlib import Path

import tensorzero
from openai import OpenAI

warnings.simplefilter("ignore")
client = tensorzero.patch_openai_client(
    OpenAI(api_key="none"), config_file=sys.argv[1], async_setup=False
)
part = Path(sys.argv[2] + ".part")
part.write_text(str(client.base_url.port))
os.replace(part, sys.argv[2])
signal.pause()
