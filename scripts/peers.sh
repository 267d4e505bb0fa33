#!/usr/bin/env bash
# Installs the systems that the benchmarks compare with, where they can be had: Pathway, from PyPI, into
# a virtual environment under target/. Some 650 MB.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -m venv target/peers
target/peers/bin/pip install --quiet "pathway==0.33.0"
