#!/usr/bin/env bash
# Everything that change capture needs, for tests and for trying it by hand: PostgreSQL, Kafka, a
# schema registry, and Kafka Connect with Debezium, all on loopback.
#
#   services.sh fetch            downloads what is missing, starts nothing
#   services.sh up DIR [OWNER]   starts all of them with free ports, which it writes into
#                                DIR/ports.env as shell variables. With OWNER, a process id, they
#                                are ended and DIR is removed when that process has ended
#   services.sh down DIR         ends them, by the process ids kept in DIR
#
# Logs are in DIR/*/. A second `up` in the same DIR starts what does not run, with the same data and
# ports. Needs about 1.2 GiB of memory.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/server.sh
. "$here/server.sh"

fetch() {
  "$here/kafka.sh" fetch
  for name in connect debezium avro-converter registry; do
    "$here/jars.sh" "$name" >/dev/null
  done
  ls -d /usr/lib/postgresql/*/bin >/dev/null 2>&1 || command -v initdb >/dev/null ||
    fail "PostgreSQL is missing (scripts/setup.sh test installs it)"
}

# Five ports that are free now and next to each other: the broker's controller takes the one after
# the broker's.
choose_ports() {
  python3 - <<'PYTHON'
import random, socket, sys
for _ in range(200):
    first = random.randrange(20000, 32000)
    taken = []
    try:
        for port in range(first, first + 5):
            held = socket.socket()
            taken.append(held)
            held.bind(("127.0.0.1", port))
    except OSError:
        continue
    else:
        print(first)
        sys.exit()
    finally:
        for held in taken:
            held.close()
sys.exit("no five free ports")
PYTHON
}

write_ports() {
  [ -e "$directory/ports.env" ] && return
  local first
  first="$(choose_ports)" || fail "no free ports"
  cat >"$directory/ports.env.partial" <<CONF
KAFKA_PORT=$first
POSTGRES_PORT=$((first + 2))
REGISTRY_PORT=$((first + 3))
CONNECT_PORT=$((first + 4))
KAFKA_BROKERS=127.0.0.1:$first
REGISTRY_URL=http://127.0.0.1:$((first + 3))/apis/ccompat/v7
APICURIO_URL=http://127.0.0.1:$((first + 3))/apis/registry/v2
CONNECT_URL=http://127.0.0.1:$((first + 4))
CONF
  mv "$directory/ports.env.partial" "$directory/ports.env"
}

# Starts a service unless its process runs already.
ensure() {
  local name="$1"
  shift
  (directory="$directory/$name" is_running) || "$here/$name.sh" start "$directory/$name" "$@"
}

start_all() {
  # shellcheck disable=SC1091
  . "$directory/ports.env"
  # The registry takes its time, and needs none of the others.
  ensure registry "$REGISTRY_PORT" &
  local registry=$!
  ensure postgres "$POSTGRES_PORT" &
  local postgres=$!
  ensure kafka "$KAFKA_PORT" || return
  ensure connect "$CONNECT_PORT" "$KAFKA_BROKERS" || return
  wait "$postgres" || return
  wait "$registry" || return
  write_database_address
}

# Known once the cluster is made, with its password.
write_database_address() {
  grep -q POSTGRES_URL "$directory/ports.env" && return
  local password
  password="$(cat "$directory/postgres/password")"
  cat >>"$directory/ports.env" <<CONF
POSTGRES_PASSWORD=$password
POSTGRES_URL=postgresql://postgres:$password@127.0.0.1:$POSTGRES_PORT/postgres
CONF
}

# Lives as long as the owner, then ends what was started: a test that is killed leaves nothing.
watch_owner() {
  local owner="$1"
  (
    while kill -0 "$owner" 2>/dev/null; do sleep 0.5; done
    "$here/services.sh" down "$directory"
    rm -rf "$(cat "$directory/postgres/data-directory")" "$directory"
  ) >/dev/null 2>&1 </dev/null &
}

up() {
  fetch
  mkdir -p "$directory"
  # The user that PostgreSQL runs as must be able to enter.
  chmod o+x "$directory"
  [ -z "${1:-}" ] || watch_owner "$1"
  write_ports
  if ! start_all; then
    down
    exit 1
  fi
}

down() {
  # Connect first: without a broker it would wait for one before it ends.
  for name in connect registry kafka postgres; do
    [ ! -d "$directory/$name" ] || "$here/$name.sh" stop "$directory/$name" &
    [ "$name" != connect ] || wait
  done
  wait
}

usage="usage: services.sh fetch | up DIR [OWNER] | down DIR"
case "${1:-}" in
fetch)
  fetch
  ;;
up | down)
  [ $# -ge 2 ] || fail "$usage"
  [ "$1" = down ] || mkdir -p "$2"
  [ -d "$2" ] || exit 0
  directory="$(cd "$2" && pwd)"
  "$1" "${3:-}"
  ;;
*)
  fail "$usage"
  ;;
esac
