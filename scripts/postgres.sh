#!/usr/bin/env bash
# One PostgreSQL server with logical decoding on loopback, for tests.
#
#   postgres.sh start DIR PORT [NAME=VALUE ...]
#       makes a cluster in DIR if there is none, starts it on 127.0.0.1:PORT with those settings on
#       top of `wal_level=logical`, and returns when it answers. Its superuser is `postgres`; the
#       password is in DIR/password, and is asked for by SCRAM. Where DIR/tls has certificates, the
#       server speaks TLS
#   postgres.sh certificates DIR
#       makes an authority (DIR/tls/ca.pem) and a certificate for `localhost`
#   postgres.sh stop DIR
#       ends the server that was started in DIR, by its process id
#
# There is no Unix socket. A second start in the same DIR goes on with its data. PostgreSQL refuses to
# run as root: then it runs as the user `postgres` that Debian's package makes. DIR/data-directory
# names the folder of the data: DIR/data, or one under /tmp where that user can't enter DIR.
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
  # The tests' own secret, on loopback, for minutes.
  head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$directory/password"
  # Handed over as text: the server's user may be unable to read the file.
  as_owner env LC_ALL=C.UTF-8 bash -c '
    exec "$1" --pgdata="$2" --username=postgres --auth=scram-sha-256 --pwfile=<(echo "$3") \
      --encoding=UTF8 --locale=C.UTF-8 --no-sync' \
    initdb "$programs/initdb" "$data" "$(cat "$directory/password")" \
    >"$directory/initdb.log" 2>&1 ||
    fail "initdb failed: $(tail -n2 "$directory/initdb.log")"
  echo "include_if_exists = 'vectide.conf'" |
    as_owner tee -a "$data/postgresql.conf" >/dev/null
  echo "$data" >"$directory/data-directory"
}

# Nothing here must survive a power cut, so nothing waits for the disk.
settings() {
  cat <<CONF
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
  if [ -d "$directory/tls" ]; then
    printf '%s\n' "ssl = on" "ssl_cert_file = 'server.pem'" "ssl_key_file = 'server.key'"
  fi
  local setting
  for setting in "$@"; do
    echo "${setting%%=*} = '${setting#*=}'"
  done
}

write_settings() {
  local data
  data="$(cat "$directory/data-directory")"
  settings "$@" | as_owner tee "$data/vectide.conf" >/dev/null
  if [ -d "$directory/tls" ]; then
    as_owner tee "$data/server.pem" <"$directory/tls/server.pem" >/dev/null
    as_owner bash -c 'umask 077; cat >"$1"' write "$data/server.key" <"$directory/tls/server.key"
  fi
}

certificates() {
  command -v openssl >/dev/null || fail "openssl is missing"
  mkdir -p "$directory/tls"
  (
    cd "$directory/tls"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=Vectide test authority" \
      -keyout ca.key -out ca.pem
    openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout server.key -out server.csr
    printf 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n' >server.ext
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
      -extfile server.ext -out server.pem
    chmod 600 server.key
  ) >"$directory/openssl.log" 2>&1 || fail "$(tail -n1 "$directory/openssl.log")"
}

takes_queries() {
  PGPASSWORD="$(cat "$directory/password")" "$programs/psql" -h 127.0.0.1 -p "$port" -U postgres -Atc 'select 1' \
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
  write_settings "$@"
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

usage="usage: postgres.sh start DIR PORT [NAME=VALUE ...] | certificates DIR | stop DIR"
[ $# -ge 2 ] || fail "$usage"
mkdir -p "$2"
directory="$(cd "$2" && pwd)"
case "$1" in
start)
  [ $# -ge 3 ] || fail "$usage"
  port="$3"
  shift 3
  start "$@"
  ;;
certificates)
  certificates
  ;;
stop)
  stop
  ;;
*)
  fail "$usage"
  ;;
esac
