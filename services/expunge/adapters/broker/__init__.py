"""Publishing to Kafka. One file per technology."""
