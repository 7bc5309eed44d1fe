#!/bin/sh
# Renews requirements/*.txt from pyproject.toml. Needs pip-tools (pip-compile) on the PATH.
set -eu
cd "$(dirname "$0")/.."
flags="--quiet --generate-hashes --strip-extras --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --allow-unsafe"
pip-compile $flags --output-file requirements/base.txt pyproject.toml
pip-compile $flags --extra lab --extra dev --output-file requirements/dev.txt pyproject.toml
