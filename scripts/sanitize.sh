#!/usr/bin/env bash
# Runs the index's own tests under AddressSanitizer: reads and writes of the kernels that leave their memory, also by
# intrinsics, end the run, and so do leaks. Needs a nightly toolchain (`rustup toolchain install nightly`), since sanitizers are not
# stable yet. FAISS itself is not instrumented.
#
#   scripts/sanitize.sh [TEST...]
set -euo pipefail
cd "$(dirname "$0")/.."
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "there is no nightly toolchain; hint: rustup toolchain install nightly" >&2
    exit 1
fi
host=$(rustc -vV | sed -n 's/^host: //p')
# Fewer cases of each property: instrumented code takes several times as long.
export PROPTEST_CASES=${PROPTEST_CASES:-32}
# Whole stacks, without which leaks of FAISS's can't be told from ours.
export ASAN_OPTIONS=fast_unwind_on_malloc=0
export LSAN_OPTIONS="suppressions=$PWD/kernels/faiss/leaks.supp:print_suppressions=0"
export RUSTFLAGS="-Zsanitizer=address -Cdebuginfo=1"
exec cargo +nightly test --release --package vectide-faiss --target "$host" --target-dir target/sanitize -- "$@"
