#!/usr/bin/env bash
# Checks the CUDA kernels on a machine with a GPU, and measures them.
#
#   scripts/gpu_verify.sh build       makes target/gpu-verify, to be carried to that machine: one program
#                                     with the kernels in it (needs Rust, no GPU); beside it
#                                     target/gpu-verify.image, MiniLM in fp16, where it has been fetched
#   scripts/gpu_verify.sh run [DIR]   there: runs it and writes DIR/checks.jsonl, DIR/measured.jsonl,
#                                     DIR/sanitizer-*.log and a table DIR/table.md; DIR is
#                                     target/gpu-verify-results by default
#
# `run` needs a driver for CUDA 13.0, a glibc no older than where it was built, bash, coreutils, grep and
# python3 (its own library only, for the table); no Rust, no toolkit, no network. In the same places as here:
# this script, target/gpu-verify, and for the real model target/gpu-verify.image and
# kernels/encoder/tests/data. compute-sanitizer is used where it is.
#
# Not yet run on a GPU. Without one `run` says why in one line and ends with status 2.
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

# What of `run` did not come to its end, and what was not clean.
incomplete=()
unclean=()

# Runs the program with its lines going to the end of a file. The program ends with 1 when all was done and
# something is wrong, which its lines say; with another status, or killed, when something was not done.
step() {
    local out=$1 status=0
    shift
    "$program" "$@" >>"$out" || status=$?
    case $status in
        0) ;;
        1) unclean+=("$1") ;;
        *) incomplete+=("$1 (status $status)") ;;
    esac
}

# Races, accesses outside of memory and barriers that not all threads reach, where the tool is there.
# Not initcheck: rows that fill a replayed batch up are read unwritten, and used for nothing.
sanitize() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "skipped: compute-sanitizer is not installed"
        return
    fi
    local tool
    for tool in memcheck racecheck synccheck; do
        if timeout 120 compute-sanitizer --tool $tool --error-exitcode 9 $program check-small \
            >"$1/sanitizer-$tool.log" 2>&1; then
            echo "compute-sanitizer $tool: nothing"
        else
            echo "compute-sanitizer $tool: see $1/sanitizer-$tool.log"
            unclean+=("compute-sanitizer $tool")
        fi
    done
}

# From the folder of the results, what is incomplete and what is not clean, a line each.
table() {
    python3 - "$@" <<'PY'
import json, sys
folder, incomplete, unclean = sys.argv[1], *(lines.splitlines() for lines in sys.argv[2:4])

def read(name):
    found = []
    for line in open(f"{folder}/{name}.jsonl"):
        try:
            found.append(json.loads(line))
        except ValueError:
            # A program that was killed leaves half a line.
            incomplete.append(f"a line of {name}.jsonl")
    return found

device = read("device")[0]
measured, checks = read("measured"), read("checks")
wrong = [line["check"] for line in checks if line["verdict"] != "ok"]
with open(f"{folder}/table.md", "w") as out:
    print(f"{device['device']}, compute capability {device['capability']}, "
          f"{device['multiprocessors']} multiprocessors\n", file=out)
    print("| what | value | |\n| --- | ---: | --- |", file=out)
    for line in measured:
        print(f"| {line['name']} | {float(line['value']):.4g} | {line['unit']} |", file=out)
    none = "none of those made" if incomplete else "none"
    print(f"\n{len(checks)} checks, wrong: {', '.join(wrong) or none}", file=out)
    if unclean:
        print(f"\nnot clean: {', '.join(unclean)}", file=out)
    if incomplete:
        print(f"\n**incomplete**, not done to the end: {', '.join(incomplete)}", file=out)
    elif not checks or not measured:
        print("\n**incomplete**: no checks or no figures", file=out)
PY
    cat "$1/table.md"
}

run() {
    local results=${1:-target/gpu-verify-results}
    mkdir -p "$results"
    $program probe >"$results/device.jsonl"
    : >"$results/checks.jsonl"
    : >"$results/measured.jsonl"
    step "$results/checks.jsonl" check "$(date +%s)"
    if [ -e $image ]; then
        step "$results/checks.jsonl" golden $image kernels/encoder/tests/data
    else
        echo "skipped: golden vectors: no $image"
    fi
    grep WRONG "$results/checks.jsonl" || true
    sanitize "$results"
    step "$results/measured.jsonl" measure
    table "$results" "$(printf '%s\n' "${incomplete[@]}")" "$(printf '%s\n' "${unclean[@]}")"
    [ ${#incomplete[@]} -eq 0 ] && [ ${#unclean[@]} -eq 0 ]
}

case ${1:-} in
    build) build ;;
    run) run "${2:-}" ;;
    *) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
