# shellcheck shell=bash
# What the scripts that run a server have in common; they source it. `directory` is the server's
# folder; its process id is kept in `directory/pid` and only that process is ever ended.

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# A process that has ended stays listed until its parent takes note: that one does not run.
is_alive() {
  kill -0 "$1" 2>/dev/null && ! grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"
}

is_running() {
  [ -e "$directory/pid" ] && is_alive "$(cat "$directory/pid")"
}

port_answers() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# wait_until_ready WHAT LOG CHECK...: the check is asked five times a second for two minutes.
wait_until_ready() {
  local what="$1" log="$2"
  shift 2
  for _ in $(seq 1 600); do
    if ! is_running; then
      rm -f "$directory/pid"
      fail "$what ended: $(tail -n3 "$log" 2>/dev/null)"
    fi
    "$@" && return
    sleep 0.2
  done
  stop_server
  fail "$what did not answer within 120 s (see $log)"
}

stop_server() {
  [ -e "$directory/pid" ] || return 0
  local pid
  pid="$(cat "$directory/pid")"
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 1 100); do
    is_alive "$pid" || break
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$directory/pid"
}

# Ends it without warning, as a crash would, and returns when it is gone.
kill_server() {
  is_running || fail "nothing runs in $directory"
  kill -9 "$(cat "$directory/pid")"
  while is_running; do sleep 0.05; done
  rm -f "$directory/pid"
}
