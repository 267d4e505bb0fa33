#!/usr/bin/env bash
# One Apache Kafka broker (KRaft) on loopback, for tests.
#
#   kafka.sh fetch            collects Kafka from Maven Central, once
#   kafka.sh start DIR PORT   formats DIR if it is new, starts a broker on 127.0.0.1:PORT with its
#                             controller on PORT+1, and returns when it answers
#   kafka.sh stop DIR         ends the broker that was started in DIR, by the process id kept there
#   kafka.sh kill DIR         the same without giving it time to tidy up
#
# What stands in DIR/extra.properties is added to the broker's settings (more listeners, TLS), and each
# line of DIR/scram-users is a user that exists from the start: SCRAM-SHA-256=[name=a,password=b].
#
# VECTIDE_KAFKA_LIBS names a folder for the jars (default: ~/.cache/vectide/kafka). A second start
# in the same DIR goes on with its data. Needs Java 17 or newer, and Maven for the first fetch.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
pom="$here/kafka/pom.xml"
cache="${VECTIDE_KAFKA_LIBS:-${XDG_CACHE_HOME:-$HOME/.cache}/vectide/kafka}"
# The jars of another pom lie in another folder, so a changed version is fetched anew.
libs="$cache/$(cksum <"$pom" | cut -d' ' -f1)"

fail() {
  echo "kafka.sh: $*" >&2
  exit 1
}

fetch() {
  [ -e "$libs/complete" ] && return
  command -v java >/dev/null || fail "java is missing (Debian: openjdk-17-jre-headless)"
  command -v mvn >/dev/null || fail "mvn is missing (Debian: maven)"
  mkdir -p "$cache"
  # Two tests that start at once fetch once.
  exec 9>"$cache/lock"
  flock 9
  if [ ! -e "$libs/complete" ]; then
    local partial
    partial="$(mktemp -d "$cache/partial.XXXXXX")"
    # Maven prefers its local repository, so this works offline once it has run.
    if ! mvn --batch-mode --quiet --file "$pom" dependency:copy-dependencies \
      -DincludeScope=runtime "-DoutputDirectory=$partial" >"$cache/fetch.log" 2>&1; then
      rm -rf "$partial"
      fail "Kafka can't be collected by Maven (see $cache/fetch.log): $(grep -m1 ERROR "$cache/fetch.log" || true)"
    fi
    touch "$partial/complete"
    rm -rf "$libs"
    mv "$partial" "$libs"
  fi
  flock -u 9
  exec 9>&-
}

# Becomes the program: in the background, $! is then Java's own process id.
run_java() {
  exec java -Xms128m -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    "-Dlog4j2.configurationFile=$directory/log4j2.properties" -cp "$libs/*" "$@"
}

write_settings() {
  local controller=$((port + 1))
  cat >"$directory/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$directory/data
auto.create.topics.enable=false
delete.topic.enable=true
message.max.bytes=20000000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=500
EOF
  if [ -e "$directory/extra.properties" ]; then
    # Of a setting that stands twice the last counts.
    cat "$directory/extra.properties" >>"$directory/server.properties"
  fi
  cat >"$directory/log4j2.properties" <<EOF
appender.file.type=File
appender.file.name=file
appender.file.fileName=$directory/broker.log
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %m (%c)%n%ex
rootLogger.level=WARN
rootLogger.appenderRef.file.ref=file
logger.server.name=kafka.server.KafkaRaftServer
logger.server.level=INFO
EOF
}

format() {
  [ -e "$directory/data/meta.properties" ] && return
  local id
  id="$(run_java kafka.tools.StorageTool random-uuid 2>>"$directory/format.log")"
  local users=() user
  if [ -e "$directory/scram-users" ]; then
    while read -r user; do
      users+=(--add-scram "$user")
    done <"$directory/scram-users"
  fi
  (run_java kafka.tools.StorageTool format --ignore-formatted -t "$id" \
    -c "$directory/server.properties" "${users[@]}") >>"$directory/format.log" 2>&1 ||
    fail "the storage can't be formatted: $(tail -n1 "$directory/format.log")"
}

answers() {
  (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null
}

is_running() {
  [ -e "$directory/pid" ] && kill -0 "$(cat "$directory/pid")" 2>/dev/null
}

start() {
  fetch
  mkdir -p "$directory"
  is_running && fail "a broker runs in $directory already"
  answers && fail "port $port is taken"
  write_settings
  format
  # "Kafka Server started" stands in the log when the broker takes requests, not only connections.
  # In a folder that is used again it stands there from before.
  local before
  before="$(grep -c 'Kafka Server started' "$directory/broker.log" 2>/dev/null || true)"
  run_java kafka.Kafka "$directory/server.properties" \
    >"$directory/broker.out" 2>&1 </dev/null &
  echo $! >"$directory/pid"
  for _ in $(seq 1 600); do
    if ! is_running; then
      rm -f "$directory/pid"
      fail "the broker ended: $(tail -n1 "$directory/broker.out") $(grep -m1 -E 'ERROR|FATAL' "$directory/broker.log" || true)"
    fi
    local now
    now="$(grep -c 'Kafka Server started' "$directory/broker.log" 2>/dev/null || true)"
    if [ "${now:-0}" -gt "${before:-0}" ] && answers; then
      return
    fi
    sleep 0.2
  done
  stop
  fail "the broker did not answer within 120 s (see $directory/broker.log)"
}

stop() {
  [ -e "$directory/pid" ] || return 0
  local pid
  pid="$(cat "$directory/pid")"
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 1 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$directory/pid"
}

kill_now() {
  [ -e "$directory/pid" ] || return 0
  local pid
  pid="$(cat "$directory/pid")"
  kill -9 "$pid" 2>/dev/null || true
  for _ in $(seq 1 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.05
  done
  rm -f "$directory/pid"
}

case "${1:-}" in
fetch)
  fetch
  ;;
start)
  [ $# -eq 3 ] || fail "usage: kafka.sh start DIR PORT"
  directory="$2"
  port="$3"
  start
  ;;
kill)
  [ $# -eq 2 ] || fail "usage: kafka.sh kill DIR"
  directory="$2"
  kill_now
  ;;
stop)
  [ $# -eq 2 ] || fail "usage: kafka.sh stop DIR"
  directory="$2"
  stop
  ;;
*)
  fail "usage: kafka.sh fetch | start DIR PORT | stop DIR | kill DIR"
  ;;
esac
