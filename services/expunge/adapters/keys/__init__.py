"""Key stores: bucket keys by day, destroyed on schedule, and the signing keys of each role. Not Kafka, not archived
Postgres, not a backup set."""
