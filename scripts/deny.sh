#!/usr/bin/env bash
# Licences, sources and the direction of imports between our own crates; advisories as well where
# their database can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo-deny >/dev/null; then
    echo "installing cargo-deny"
    cargo install --locked --quiet cargo-deny
fi
cargo deny --log-level error check bans licenses sources
if ! cargo deny --log-level error fetch db >/dev/null 2>&1; then
    echo "skipped: advisories: their database can't be reached"
else
    cargo deny --log-level error check advisories
fi
