"""Real servers from package registries: PostgreSQL 18 with pgvector and Apache Kafka 4. No Java, no Docker.

For a first look, development, tests and benchmarks; loopback only. Importing starts nothing. A server dies with the
process that started it.
"""
