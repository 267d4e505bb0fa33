#!/usr/bin/env bash
# The long runs of everything that attacks the state and the connectors: some hours. Writes what they
# survived to docs/RELIABILITY.md.
#
#   scripts/torture.sh [short]
#
# `short` makes the runs of CI instead. What each test told is kept in target/torture; with
# VECTIDE_TORTURE_KEEP=1 a test that has passed there is not run again, so that the long run can be made in
# parts.
set -euo pipefail
cd "$(dirname "$0")/.."

long=1
[ "${1:-}" = short ] && long=0
export VECTIDE_TORTURE="$long" VECTIDE_REQUIRE_SERVICES=1
[ "$long" = 1 ] && export VECTIDE_KILL_ROUNDS=20

out=target/torture
[ "${VECTIDE_TORTURE_KEEP:-0}" = 1 ] || rm -rf "$out"
mkdir -p "$out"
# With the features of the whole workspace, so that nothing is compiled a second time.
run() {
    local test="$1"
    shift
    grep -qs '^test result: ok' "$out/$test" && return
    cargo test --release --workspace --test "$test" -- --nocapture --test-threads 1 "$@" | tee "$out/$test"
}
cargo build --release --workspace --bin vectide
for test in kills faults lost_writes processes panics hangs state_check backup rebuild limits formats clock load; do
    run "$test"
done
run kafka_running while_it_runs torture
run postgres torture
run cdc kills

# Lines in which a test says what it did.
said='seed [0-9]+ |kills, |met no such call|disks were full|races had|asked to end|bits|over [0-9]+ kills'
said="$said|^run [0-9]+|in [0-9.]+ s, killed|ended by a read|processes ended|than were acknowledged"
said="$said|embedders that hung|changes and [0-9]+ queries|MiB while"
told="$(grep -ahE "$said" "$out"/* | grep -v 'embeddings/s' || true)"
tests="$(cat "$out"/* | grep -acE '^test .* ok$|\.\.\. ok$' || true)"
cat >docs/RELIABILITY.md <<PAGE
# What was survived

Written by \`scripts/torture.sh$([ "$long" = 0 ] && echo " short")\` on $(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD). Every run ended with the
state that its source says, by \`vectide check\` and by an oracle of its own: lost, duplicate, orphaned and stale chunks,
checksum errors, epochs and positions that went back: all 0. A run that finds one fails, and this page is not written.

| attack | test |
| --- | --- |
| SIGKILL at random moments while a real history is followed | \`tests/kills.rs\` |
| the n-th sync, rename, write or read fails or is the last call; a full disk | \`tests/faults.rs\` |
| the power fails: what was not synced is gone or torn, each write by itself | \`tests/lost_writes\` |
| a source, a chunker, an embedder, a shard panics | \`tests/panics.rs\` |
| an embedder answers no more | \`tests/hangs.rs\` |
| two processes on one state, a stopped one that goes on, SIGTERM under load, a disk that hangs | \`tests/processes.rs\` |
| the clock jumps by an hour or a day | \`tests/clock.rs\` |
| a disk below its floor, a state at its limit | \`tests/limits.rs\` |
| a soak, 200,000 changes at once, a line of 100 MiB, a million deletes | \`tests/load.rs\` |
| backups and checks under load, a changed pipeline, every format of the state | \`tests/backup.rs\`, \`rebuild.rs\`, \`formats.rs\` |
| a flipped bit in each kind of file | \`tests/state_check.rs\` |
| a Kafka broker killed under load | \`connectors/tests/kafka_running.rs\` |
| the process killed in a snapshot of PostgreSQL while writers write | \`connectors/tests/postgres/torture.rs\` |
| Connect and the process killed beside writers | \`tests/cdc/kills.rs\` |

$tests tests passed. What they told:

\`\`\`text
$told
\`\`\`
PAGE
echo "docs/RELIABILITY.md is written"
