"""The read API, a process of its own: what became of a request, its proofs, models; and requests signed by their publisher,
taken over HTTP and put on Kafka unchanged. Signs nothing, erases nothing, and reads the database read-only."""
