#!/usr/bin/env bash
# Fuzzes every record decoder for a number of executions (100,000 by default), with bounded memory.
#
#   scripts/fuzz.sh [RUNS] [TARGET...]
#
# Finds are written to connectors/fuzz/artifacts. The targets are those of cargo-fuzz, which is not
# needed: the counters that libFuzzer steers by come from flags of the stable compiler. Without a
# sanitizer, as there is no unsafe code to watch; overflow checks and debug assertions are on.
set -euo pipefail
cd "$(dirname "$0")/../connectors/fuzz"

runs="${1:-100000}"
shift || true
if [ "$#" -gt 0 ]; then
    targets=("$@")
else
    targets=()
    for file in fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi

export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
# A target of its own, so that build scripts and macros are compiled without the counters.
host="$(rustc -vV | sed -n 's/^host: //p')"
cargo build --release --features testing --target "$host" --target-dir target

for target in "${targets[@]}"; do
    found="artifacts/$target"
    grown="$(mktemp -d)"
    mkdir -p "$found"
    echo "== $target: $runs executions"
    "target/$host/release/$target" -runs="$runs" -seed=1 -rss_limit_mb=1024 -malloc_limit_mb=512 \
        -timeout=10 -max_len=65536 -dict=json.dict -artifact_prefix="$found/" -verbosity=0 \
        -print_final_stats=1 -print_funcs=0 "$grown" "corpus/$target"
    rm -rf "$grown"
done
echo "all targets passed"
