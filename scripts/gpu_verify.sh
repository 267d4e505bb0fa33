#!/usr/bin/env bash
# Checks the CUDA kernels on a machine with a GPU, and measures them.
#
#   scripts/gpu_verify.sh build       makes target/gpu-verify, to be carried to that machine: one program
#                                     with the kernels in it (needs Rust, no GPU); beside it
#                                     target/gpu-verify.image, MiniLM in fp16, where it has been fetched
#   scripts/gpu_verify.sh run [DIR]   there: runs it and writes DIR/checks.jsonl, DIR/measured.jsonl,
#                                     DIR/sanitizer-*.log and a table DIR/table.md (needs a driver, no
#                                     Rust and no network; DIR is target/gpu-verify-results by default)
#
# Not yet run on a GPU. Without one `run` says why in one line and ends with status 1.
set -euo pipefail
cd "$(dirname "$0")/.."
program=target/gpu-verify
image=$program.image

build() {
    cargo build --release --package vectide-cuda --features verify --bin vectide-gpu-verify
    strip -o $program "${CARGO_TARGET_DIR:-target}/release/vectide-gpu-verify"
    local model=${XDG_CACHE_HOME:-$HOME/.cache}/vectide/models/all-MiniLM-L6-v2/model.safetensors
    if [ -e "$model" ]; then
        $program image "$model" $image
    else
        echo "skipped: MiniLM, which \`vectide model fetch all-MiniLM-L6-v2\` fetches"
    fi
    du -h $program*
}

# Races, accesses outside of memory and barriers that not all threads reach, where the tool is there.
# Not initcheck: rows that fill a replayed batch up are read unwritten, and used for nothing.
sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "skipped: compute-sanitizer is not installed"
        return 0
    fi
    local failed=0
    for tool in memcheck racecheck synccheck; do
        timeout 120 compute-sanitizer --tool $tool --error-exitcode 2 $program check-small \
            >"$1/sanitizer-$tool.log" 2>&1 && echo "compute-sanitizer $tool: nothing" ||
            { echo "compute-sanitizer $tool: see $1/sanitizer-$tool.log"; failed=1; }
    done
    return $failed
}

table() {
    python3 - "$1" <<'PY'
import json, sys
folder = sys.argv[1]
read = lambda name: [json.loads(line) for line in open(f"{folder}/{name}.jsonl")]
device = read("device")[0]
with open(f"{folder}/table.md", "w") as out:
    print(f"{device['device']}, compute capability {device['capability']}, "
          f"{device['multiprocessors']} multiprocessors\n", file=out)
    print("| what | value | |\n| --- | ---: | --- |", file=out)
    for line in read("measured"):
        print(f"| {line['name']} | {float(line['value']):.4g} | {line['unit']} |", file=out)
    checks = read("checks")
    wrong = [line["check"] for line in checks if line["verdict"] != "ok"]
    print(f"\n{len(checks)} checks, wrong: {', '.join(wrong) or 'none'}", file=out)
PY
    cat "$1/table.md"
}

run() {
    local results=${1:-target/gpu-verify-results} failed=0
    mkdir -p "$results"
    $program probe >"$results/device.jsonl"
    $program check "$(date +%s)" >"$results/checks.jsonl" || failed=1
    if [ -e $image ]; then
        $program golden $image kernels/encoder/tests/data >>"$results/checks.jsonl" || failed=1
    else
        echo "skipped: golden vectors: no $image"
    fi
    grep WRONG "$results/checks.jsonl" || true
    sanitize "$results" || failed=1
    $program measure >"$results/measured.jsonl" || failed=1
    table "$results"
    return $failed
}

case ${1:-} in
    build) build ;;
    run) run "${2:-}" ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
