#!/usr/bin/env bash
# The long runs of everything that attacks the state and the connectors: some hours. Writes what they
# survived to docs/RELIABILITY.md.
#
#   scripts/torture.sh [short]
#
# `short` makes the runs of CI instead.
set -euo pipefail
cd "$(dirname "$0")/.."

long=1
[ "${1:-}" = short ] && long=0
export VECTIDE_TORTURE="$long" VECTIDE_REQUIRE_SERVICES=1
[ "$long" = 1 ] && export VECTIDE_KILL_ROUNDS=20

out="$(mktemp)"
trap 'rm -f "$out"' EXIT
cargo test --release -p vectide-tests --test kills --test faults --test processes --test state_check \
    -- --nocapture --test-threads 1 | tee "$out"
cargo test --release -p vectide-connectors --test kafka_running --test postgres -- --nocapture \
    while_it_runs torture | tee -a "$out"
cargo test --release -p vectide-tests --test cdc kills -- --nocapture | tee -a "$out"

# Lines in which a test says what it did.
told="$(grep -E 'seed [0-9]+ |kills, |met no such call|disks were full|races had|asked to end|bits|over [0-9]+ kills|^run [0-9]+|in [0-9.]+ s, killed' "$out" || true)"
cat >docs/RELIABILITY.md <<PAGE
# What was survived

Written by \`scripts/torture.sh$([ "$long" = 0 ] && echo " short")\` on $(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD). Every run ended with the
state that its source says, by \`vectide check\` and by an oracle of its own: lost, duplicate, orphaned and stale chunks,
checksum errors, epochs and positions that went back: all 0. A run that finds one fails, and this page is not written.

| attack | test |
| --- | --- |
| SIGKILL at random moments while a real history is followed | \`tests/kills.rs\` |
| the n-th sync, rename or write fails or is the last call; a full disk | \`tests/faults.rs\` |
| two processes on one state, a stopped one that goes on, SIGTERM under load | \`tests/processes.rs\` |
| a flipped bit in each kind of file | \`tests/state_check.rs\` |
| a Kafka broker killed under load | \`connectors/tests/kafka_running.rs\` |
| the process killed in a snapshot of PostgreSQL while writers write | \`connectors/tests/postgres/torture.rs\` |
| Connect and the process killed beside writers | \`tests/cdc/kills.rs\` |

What the tests told:

\`\`\`text
$told
\`\`\`
PAGE
echo "docs/RELIABILITY.md is written"
