#!/bin/sh
# The part of the public image's contract that docker-compose.yml uses: KAFKA_SOME_NAME becomes some.name.
set -eu
config=/opt/kafka/config/server.properties
env | while IFS='=' read -r name value; do
  case $name in
  KAFKA_CLUSTER_ID | KAFKA_HEAP_OPTS) ;;
  KAFKA_*) echo "$(echo "${name#KAFKA_}" | tr '[:upper:]_' '[:lower:].')=$value" ;;
  esac
done >"$config"
if [ ! -e "$KAFKA_LOG_DIRS/meta.properties" ]; then
  java -cp '/opt/kafka/libs/*' kafka.tools.StorageTool format --cluster-id="${CLUSTER_ID:-MkU3OEVBNTcwNTJENDM2Qk}" --config="$config" >/dev/null
fi
# shellcheck disable=SC2086 - options, split on purpose
exec java ${KAFKA_HEAP_OPTS:--Xmx512m} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
  --enable-native-access=ALL-UNNAMED --sun-misc-unsafe-memory-access=allow -cp "/opt/kafka/libs/*" kafka.Kafka "$config"
