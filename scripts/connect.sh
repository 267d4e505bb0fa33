#!/usr/bin/env bash
# One Kafka Connect worker (standalone) with Debezium's Postgres connector on loopback, for tests.
#
#   connect.sh start DIR PORT BROKERS   starts a worker whose REST API is 127.0.0.1:PORT, with the
#                                       connectors of DIR/connectors/*.json ({"name", "config"}),
#                                       and returns when it answers
#   connect.sh stop DIR                 ends the worker that was started in DIR, by its process id
#   connect.sh kill DIR                 the same without warning
#
# A connector that is made by the REST API lasts until the worker ends: a standalone worker keeps
# only offsets. JSON without schemas is what a connector writes that says nothing else. Plugins:
# io.debezium.connector.postgresql.PostgresConnector, io.apicurio.registry.utils.converter.AvroConverter.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/server.sh
. "$here/server.sh"

lists_connectors() {
  curl --silent --fail --max-time 5 --output /dev/null "http://127.0.0.1:$port/connectors"
}

# Each plugin's jars in a folder of its own: Connect keeps them apart from each other.
link_plugins() {
  mkdir -p "$directory/plugins" "$directory/connectors"
  ln -sfn "$("$here/jars.sh" debezium)" "$directory/plugins/debezium"
  ln -sfn "$("$here/jars.sh" avro-converter)" "$directory/plugins/avro-converter"
}

write_settings() {
  cat >"$directory/worker.properties" <<CONF
bootstrap.servers=$brokers
listeners=http://127.0.0.1:$port
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter.schemas.enable=false
offset.storage.file.filename=$directory/offsets
offset.flush.interval.ms=1000
plugin.path=$directory/plugins
plugin.discovery=hybrid_warn
connector.client.config.override.policy=All
producer.max.request.size=20000000
producer.linger.ms=5
CONF
  cat >"$directory/log4j2.properties" <<CONF
appender.file.type=File
appender.file.name=file
appender.file.fileName=$directory/connect.log
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %m (%c{1})%n%ex
rootLogger.level=WARN
rootLogger.appenderRef.file.ref=file
CONF
}

# Becomes the program: in the background, $! is then Java's own process id.
run_java() {
  exec java -Xms128m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    "-Dlog4j2.configurationFile=$directory/log4j2.properties" -cp "$libs/*" \
    org.apache.kafka.connect.cli.ConnectStandalone "$directory/worker.properties" "$@"
}

start() {
  libs="$("$here/jars.sh" connect)"
  is_running && fail "a worker runs in $directory already"
  port_answers "$port" && fail "port $port is taken"
  link_plugins
  write_settings
  shopt -s nullglob
  run_java "$directory"/connectors/*.json >"$directory/connect.out" 2>&1 </dev/null &
  echo $! >"$directory/pid"
  wait_until_ready "the worker" "$directory/connect.out" lists_connectors
}

case "${1:-}" in
start)
  [ $# -eq 4 ] || fail "usage: connect.sh start DIR PORT BROKERS"
  mkdir -p "$2"
  directory="$(cd "$2" && pwd)"
  port="$3"
  brokers="$4"
  start
  ;;
stop)
  [ $# -eq 2 ] || fail "usage: connect.sh stop DIR"
  directory="$2"
  stop_server
  ;;
kill)
  [ $# -eq 2 ] || fail "usage: connect.sh kill DIR"
  directory="$2"
  kill_server
  ;;
*)
  fail "usage: connect.sh start DIR PORT BROKERS | stop DIR | kill DIR"
  ;;
esac
