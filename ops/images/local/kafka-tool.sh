#!/bin/sh
# The command-line tools of Kafka that operators and health checks use.
case ${0##*/} in
kafka-broker-api-versions.sh)
  # Listening is what the public image's tool finds out, with a JVM each time.
  exec nc -w 2 localhost 9092 </dev/null
  ;;
kafka-consumer-groups.sh) exec java -Xmx64m -cp '/opt/kafka/libs/*' org.apache.kafka.tools.consumer.group.ConsumerGroupCommand "$@" ;;
esac
