#!/usr/bin/env bash
# The long runs of everything that attacks the state and the connectors: some hours. Writes what they
# survived to docs/RELIABILITY.md.
#
#   scripts/torture.sh [short] [TEST...]
#
# `short` makes the runs of CI instead. What each test told is kept in target/torture, and the page is written
# from all that is there: so the long run can be made in parts, by the names of tests (`page` runs none).
set -euo pipefail
cd "$(dirname "$0")/.."

long=1
if [ "${1:-}" = short ]; then
    long=0
    shift
fi
export VECTIDE_TORTURE="$long" VECTIDE_REQUIRE_SERVICES=1
[ "$long" = 1 ] && export VECTIDE_KILL_ROUNDS=20
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(kills faults lost_writes processes panics hangs exact state_check backup rebuild limits
    formats clock load kafka_running postgres cdc)

out=target/torture
mkdir -p "$out"
commit="$(git rev-parse --short HEAD)"
# With the features of the whole workspace, so that nothing is compiled a second time.
run() {
    local test="$1"
    shift
    rm -f "$out/$test"
    cargo test --release --workspace --test "$test" -- --nocapture --test-threads 1 "$@" | tee "$out/part"
    { [ "$long" = 1 ] && echo "run: long, commit $commit" || echo "run: short, commit $commit"; } >>"$out/part"
    mv "$out/part" "$out/$test"
}
cargo build --release --workspace --bin vectide
for test in "${tests[@]}"; do
    case "$test" in
        page) ;;
        kafka_running) run "$test" while_it_runs torture ;;
        postgres) run "$test" torture ;;
        cdc) run "$test" kills ;;
        *) run "$test" ;;
    esac
done

# Lines in which a test says what it did.
said='seed [0-9]+ |kills, |met no such call|disks were full|races had|asked to end|bits|over [0-9]+ kills'
said="$said|^run [0-9]+|in [0-9.]+ s, killed|ended by a read|processes ended|than were acknowledged"
said="$said|embedders that hung|changes and [0-9]+ queries|MiB while"
said="$said|asked again at their epoch"
cd "$out"
passed=0
told=""
for test in *; do
    count="$(grep -acE '^test .* ok$|\.\.\. ok$|^ok$' "$test" || true)"
    passed=$((passed + count))
    told+="## $test, $(sed -n 's/^run: //p' "$test")"$'\n'
    told+="$(grep -ahE "$said" "$test" | grep -v 'embeddings/s' || true)"$'\n'
done
cd ../..
cat >docs/RELIABILITY.md <<PAGE
# What was survived

Written by \`scripts/torture.sh\` on $(date -u +%Y-%m-%d) from the runs that are listed below, each with its commit. Every run
ended with the state that its source says, by \`vectide check\` and by an oracle of its own: lost, duplicate, orphaned and
stale chunks, checksum errors, epochs and positions that went back: all 0. A run that finds one fails and is not listed.

| attack | test |
| --- | --- |
| SIGKILL at random moments while a real history is followed | \`tests/kills.rs\` |
| the n-th sync, rename, write or read fails or is the last call; a full disk | \`tests/faults.rs\` |
| the power fails: what was not synced is gone or torn, each write by itself | \`tests/lost_writes\` |
| a source, a chunker, an embedder, a shard panics | \`tests/panics.rs\` |
| an embedder answers no more | \`tests/hangs.rs\` |
| changes, merges and restarts beside queries that are compared with an oracle of their epoch | \`tests/exact.rs\` |
| two processes on one state, a stopped one that goes on, SIGTERM under load, a disk that hangs | \`tests/processes.rs\` |
| the clock jumps by an hour or a day | \`tests/clock.rs\` |
| a disk below its floor, a state at its limit | \`tests/limits.rs\` |
| a soak, 200,000 changes at once, a line of 100 MiB, a million deletes | \`tests/load.rs\` |
| backups and checks under load, a changed pipeline, every format of the state | \`tests/backup.rs\`, \`rebuild.rs\`, \`formats.rs\` |
| a flipped bit in each kind of file | \`tests/state_check.rs\` |
| a Kafka broker killed under load | \`connectors/tests/kafka_running.rs\` |
| the process killed in a snapshot of PostgreSQL while writers write | \`connectors/tests/postgres/torture.rs\` |
| Connect and the process killed beside writers | \`tests/cdc/kills.rs\` |

$passed tests passed. What they told:

\`\`\`text
$told\`\`\`
PAGE
echo "docs/RELIABILITY.md is written"
