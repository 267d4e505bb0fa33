#!/usr/bin/env bash
# The benchmarks of every part and of the whole, one after the other, with the machine they ran on.
set -euo pipefail
cd "$(dirname "$0")/.."

grep -m1 "model name" /proc/cpuinfo || true
echo "cores: $(nproc), memory: $(free -h | awk '/Mem/ {print $2}')"
cargo bench --package vectide-connectors --bench decode
cargo bench --package vectide-connectors --bench postgres
cargo bench --package vectide-operators --bench chunking
cargo bench --package vectide-encoder --bench encoder
cargo bench --package vectide-serve --bench http
scripts/peers.sh || echo "skipped: peers: they can't be installed"
scripts/embed_peers.sh install || echo "skipped: peers of the encoder: they can't be installed"
cargo run --release --package vectide-benches
