#!/usr/bin/env bash
# Programs that are run from Maven Central's artifacts, collected once.
#
#   jars.sh NAME      collects what the pom.xml of that name names (scripts/*/NAME) and prints the folder
#                     they lie in: jars as they are, a program's archive unpacked
#
# The folder is under ~/.cache/vectide (VECTIDE_CACHE names another). A changed pom is collected
# anew. Needs Java 17 or newer, and Maven for the first time.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="${1:?usage: jars.sh NAME}"
pom="$(echo "$here"/*/"$name/pom.xml")"
cache="${VECTIDE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vectide}/$name"

fail() {
  echo "jars.sh: $*" >&2
  exit 1
}

[ -e "$pom" ] || fail "there is no $pom"
folder="$cache/$(cksum <"$pom" | cut -d' ' -f1)"
if [ ! -e "$folder/complete" ]; then
  command -v java >/dev/null || fail "java is missing (Debian: openjdk-17-jre-headless)"
  command -v mvn >/dev/null || fail "mvn is missing (Debian: maven)"
  mkdir -p "$cache"
  # Two that start at once collect once.
  exec 9>"$cache/lock"
  flock 9
fi
if [ ! -e "$folder/complete" ]; then
  partial="$(mktemp -d "$cache/partial.XXXXXX")"
  goal=copy-dependencies
  grep -q '<type>tar.gz</type>' "$pom" && goal=unpack-dependencies
  # Maven prefers its local repository, so this works offline once it has run. `-U`: a failure of
  # the network is not remembered as a missing artifact.
  if ! mvn --batch-mode --quiet -U --file "$pom" "dependency:$goal" \
    -DincludeScope=runtime "-DoutputDirectory=$partial" >"$cache/fetch.log" 2>&1; then
    rm -rf "$partial"
    fail "$name can't be collected by Maven (see $cache/fetch.log): $(grep -m1 ERROR "$cache/fetch.log" || true)"
  fi
  touch "$partial/complete"
  rm -rf "$folder"
  mv "$partial" "$folder"
fi
echo "$folder"
