#!/usr/bin/env bash
# One PostgreSQL server with logical decoding on loopback, for tests.
#
#   postgres.sh start DIR PORT   makes a cluster in DIR if there is none, starts it on
#                                127.0.0.1:PORT, and returns when it answers
#   postgres.sh stop DIR         ends the server that was started in DIR, by its process id
#
# The superuser is `postgres` with password `postgres`; there is no Unix socket. A second start in
# the same DIR goes on with its data. PostgreSQL refuses to run as root: then it runs as the user
# `postgres` that Debian's package makes. The data lie in the folder named by DIR/data-directory.
set -euo pipefail
# shellcheck source=scripts/server.sh
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/server.sh"

# Debian keeps the server's programs out of PATH, a folder for each version: the newest is taken.
find_programs() {
  programs="$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n1)"
  [ -x "$programs/initdb" ] || programs="$(dirname "$(command -v initdb || true)")"
  [ -x "$programs/initdb" ] || fail "initdb is missing (Debian: postgresql)"
}

as_owner() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && exec runuser -u postgres -- "$@")
  else
    "$@"
  fi
}

make_cluster() {
  mkdir -p "$directory"
  [ -e "$directory/data-directory" ] && return
  if [ "$(id -u)" = 0 ]; then
    id postgres >/dev/null 2>&1 || fail "there is no user postgres to run as (Debian: postgresql)"
  fi
  local data="$directory/data"
  mkdir -p "$data"
  if [ "$(id -u)" = 0 ] && ! as_owner test -x "$data"; then
    # The folder is below one that only root may enter.
    rmdir "$data"
    data="$(mktemp -d "${TMPDIR:-/tmp}/vectide-postgres.XXXXXX")"
  fi
  if [ "$(id -u)" = 0 ]; then
    chown postgres "$data"
  fi
  as_owner env LC_ALL=C.UTF-8 PASSWORD=postgres bash -c \
    'exec "$1" --pgdata="$2" --username=postgres --auth=scram-sha-256 --pwfile=<(echo "$PASSWORD") \
      --encoding=UTF8 --no-locale --no-sync' initdb "$programs/initdb" "$data" \
    >"$directory/initdb.log" 2>&1 || fail "initdb failed: $(tail -n2 "$directory/initdb.log")"
  # Nothing here must survive a power cut, so nothing waits for the disk.
  as_owner tee -a "$data/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_connections = 100
shared_buffers = 64MB
fsync = off
full_page_writes = off
timezone = 'UTC'
CONF
  echo "$data" >"$directory/data-directory"
}

takes_queries() {
  PGPASSWORD=postgres "$programs/psql" -h 127.0.0.1 -p "$port" -U postgres -Atc 'select 1' \
    >/dev/null 2>&1
}

# The server's own id is the first line of its lock file, which it writes before it answers.
note_process() {
  local file
  file="$(cat "$directory/data-directory")/postmaster.pid"
  local pid
  pid="$(as_owner head -n1 "$file" 2>/dev/null)" && [ -n "$pid" ] && echo "$pid" >"$directory/pid"
}

start() {
  find_programs
  is_running && fail "a server runs in $directory already"
  port_answers "$port" && fail "port $port is taken"
  make_cluster
  local data log="$directory/postgres.log"
  data="$(cat "$directory/data-directory")"
  as_owner "$programs/postgres" -D "$data" -p "$port" >>"$log" 2>&1 </dev/null &
  for _ in $(seq 1 300); do
    if note_process && takes_queries; then
      return
    fi
    kill -0 $! 2>/dev/null || fail "the server ended: $(tail -n2 "$log")"
    sleep 0.1
  done
  stop
  fail "the server did not answer within 30 s (see $log)"
}

stop() {
  [ -e "$directory/pid" ] || return 0
  # SIGINT: it ends at once, without waiting for its clients.
  kill -INT "$(cat "$directory/pid")" 2>/dev/null || true
  for _ in $(seq 1 100); do
    is_running || break
    sleep 0.1
  done
  stop_server
}

case "${1:-}" in
start)
  [ $# -eq 3 ] || fail "usage: postgres.sh start DIR PORT"
  mkdir -p "$2"
  directory="$(cd "$2" && pwd)"
  port="$3"
  start
  ;;
stop)
  [ $# -eq 2 ] || fail "usage: postgres.sh stop DIR"
  directory="$2"
  stop
  ;;
*)
  fail "usage: postgres.sh start DIR PORT | stop DIR"
  ;;
esac
