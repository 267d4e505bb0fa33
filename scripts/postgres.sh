#!/usr/bin/env bash
# One PostgreSQL server on loopback, for tests.
#
#   postgres.sh start DIR PORT [NAME=VALUE ...]
#       makes a cluster in DIR if it is new, starts a server on 127.0.0.1:PORT with those settings on
#       top of `wal_level=logical`, and returns when it answers. Its superuser is `postgres`; the
#       password is in DIR/password, and is asked for by SCRAM. Where DIR/tls has certificates, the
#       server speaks TLS.
#   postgres.sh certificates DIR
#       makes an authority (DIR/tls/ca.pem) and a certificate for `localhost`.
#   postgres.sh stop DIR
#       ends the server that was started in DIR, by the process id kept there.
#
# PostgreSQL refuses to run as root: then it runs as the user `postgres`, who owns DIR.
set -euo pipefail

fail() {
  echo "postgres.sh: $*" >&2
  exit 1
}

programs() {
  local found
  found="$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n1 || true)"
  if [ -z "$found" ] && command -v pg_config >/dev/null; then
    found="$(pg_config --bindir)"
  fi
  [ -x "$found/initdb" ] || fail "PostgreSQL is missing (Debian: postgresql)"
  echo "$found"
}

as_owner() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && runuser -u postgres -- "$@")
  else
    "$@"
  fi
}

own() {
  [ "$(id -u)" = 0 ] || return 0
  chown -R postgres: "$@"
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

make_cluster() {
  [ -e "$directory/data/PG_VERSION" ] && return
  mkdir -p "$directory/data"
  # The tests' own secret, on loopback, for minutes.
  head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$directory/password"
  chmod 755 "$directory"
  chmod 644 "$directory/password"
  chmod 700 "$directory/data"
  own "$directory/data"
  as_owner "$bin/initdb" --pgdata="$directory/data" --username=postgres --auth=scram-sha-256 \
    --pwfile="$directory/password" --encoding=UTF8 --locale=C.UTF-8 --no-sync \
    >"$directory/initdb.log" 2>&1 || fail "initdb: $(tail -n1 "$directory/initdb.log")"
}

write_settings() {
  cat >"$directory/data/vectide.conf" <<SETTINGS
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = ''
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
fsync = off
log_min_messages = warning
SETTINGS
  if [ -d "$directory/tls" ]; then
    cp "$directory/tls/server.pem" "$directory/tls/server.key" "$directory/data/"
    chmod 600 "$directory/data/server.key"
    {
      echo "ssl = on"
      echo "ssl_cert_file = 'server.pem'"
      echo "ssl_key_file = 'server.key'"
    } >>"$directory/data/vectide.conf"
  fi
  local setting
  for setting in "$@"; do
    echo "${setting%%=*} = '${setting#*=}'" >>"$directory/data/vectide.conf"
  done
  grep -q vectide.conf "$directory/data/postgresql.conf" ||
    echo "include = 'vectide.conf'" >>"$directory/data/postgresql.conf"
  own "$directory/data"
}

start() {
  bin="$(programs)"
  mkdir -p "$directory"
  make_cluster
  write_settings "$@"
  : >"$directory/data/server.log"
  own "$directory/data/server.log"
  as_owner "$bin/pg_ctl" --pgdata="$directory/data" --log="$directory/data/server.log" --timeout=60 \
    --wait start >"$directory/start.log" 2>&1 </dev/null ||
    fail "the server did not start: $(tail -n1 "$directory/data/server.log")"
}

stop() {
  [ -e "$directory/data/postmaster.pid" ] || return 0
  local pid
  pid="$(head -n1 "$directory/data/postmaster.pid")"
  # SIGINT: connections are ended, nothing is lost.
  kill -INT "$pid" 2>/dev/null || true
  for _ in $(seq 1 100); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -QUIT "$pid" 2>/dev/null || true
}

directory="${2:-}"
[ -n "$directory" ] || fail "usage: postgres.sh start DIR PORT [NAME=VALUE ...] | certificates DIR | stop DIR"
case "${1:-}" in
start)
  port="${3:-}"
  [ -n "$port" ] || fail "usage: postgres.sh start DIR PORT [NAME=VALUE ...]"
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
  fail "unknown command: $1"
  ;;
esac
