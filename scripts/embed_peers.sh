#!/usr/bin/env bash
# Installs what the embedding benchmark is compared with, from PyPI, into a virtual environment in
# target/embed-peers, and makes there of Vectide's own model files what they read: some 2.2 GB. Then
# measures; an environment that is there is kept.
#
#   embed_peers.sh [install]
#
# The wheel of PyTorch wants 5 GB of libraries for GPUs beside it; benches/peers/cuda_stubs.py says how it
# goes without.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=target/embed-peers
requirements=benches/peers/embed_requirements.txt
python=$folder/environment/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

install() {
  python3 -m venv --clear "$folder/environment"
  # The list is whole; what PyTorch asks for beyond it is for GPUs.
  "$python" -m pip install --quiet --no-deps --requirement "$requirements"
  local torch
  torch=$("$python" -c 'import importlib.util; print(*importlib.util.find_spec("torch").submodule_search_locations)')
  "$python" benches/peers/cuda_stubs.py "$torch"
  "$python" -c 'import sentence_transformers, onnxruntime, openvino'
  cp "$requirements" "$folder/installed.txt"
}

model() {
  local fetched
  # All of it is read: a pipe that is closed after the first line would fail the command.
  fetched=$(cargo run --quiet --release --package vectide-app --bin vectide -- model fetch all-MiniLM-L6-v2)
  "$python" benches/peers/embed_model.py "$(dirname "${fetched%%$'\n'*}")" "$folder/model"
}

mkdir -p "$folder"
cmp --silent "$requirements" "$folder/installed.txt" || install
[ -e "$folder/model/fused.onnx" ] || model
[ "${1:-}" = install ] || exec cargo run --release --package vectide-benches -- embed
