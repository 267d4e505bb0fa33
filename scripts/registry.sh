#!/usr/bin/env bash
# One schema registry (Apicurio, in memory) on loopback, for tests.
#
#   registry.sh start DIR PORT   starts it on 127.0.0.1:PORT and returns when it answers
#   registry.sh stop DIR         ends the one that was started in DIR, by its process id
#
# Confluent's API is at http://127.0.0.1:PORT/apis/ccompat/v7, Apicurio's own at
# http://127.0.0.1:PORT/apis/registry/v2.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/server.sh
. "$here/server.sh"

lists_subjects() {
  curl --silent --fail --max-time 5 --output /dev/null "http://127.0.0.1:$port/apis/ccompat/v7/subjects"
}

# Becomes the program: in the background, $! is then Java's own process id.
run_java() {
  exec java -Xms64m -Xmx192m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dquarkus.http.host=127.0.0.1 "-Dquarkus.http.port=$port" -jar "$program"
}

start() {
  local folder
  folder="$("$here/jars.sh" registry)"
  program="$(ls "$folder"/apicurio-registry-app-*-runner.jar)"
  is_running && fail "a registry runs in $directory already"
  port_answers "$port" && fail "port $port is taken"
  run_java >"$directory/registry.log" 2>&1 </dev/null &
  echo $! >"$directory/pid"
  wait_until_ready "the registry" "$directory/registry.log" lists_subjects
}

case "${1:-}" in
start)
  [ $# -eq 3 ] || fail "usage: registry.sh start DIR PORT"
  directory="$2"
  port="$3"
  mkdir -p "$directory"
  start
  ;;
stop)
  [ $# -eq 2 ] || fail "usage: registry.sh stop DIR"
  directory="$2"
  stop_server
  ;;
*)
  fail "usage: registry.sh start DIR PORT | stop DIR"
  ;;
esac
