#!/usr/bin/env bash
# The vector indexes that the index benchmark is compared with, on its own vectors: installs them from PyPI
# into a virtual environment under target/ (some 1.5 GB) and measures them one after the other.
#
#   index_peers.sh [NAME ...]
#
# The benchmark is to run first: it leaves the vectors in target/index-benchmark, or they lie in the folder
# that VECTIDE_INDEX_PEERS_DIR names. What is measured, and how, stands in benches/peers/index.py.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=target/index-peers
requirements=benches/peers/index_requirements.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1

python3 -m venv "$environment"
# One by one where they can't be had together: what is missing is a row that says so.
"$environment/bin/pip" install --quiet --requirement "$requirements" ||
  grep -v '^#' "$requirements" | while read -r requirement; do
    "$environment/bin/pip" install --quiet "$requirement" || echo "skipped: $requirement" >&2
  done
exec "$environment/bin/python" benches/peers/index.py "$@"
