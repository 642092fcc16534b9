"""The database: catalogue, progress, log rows, outbox. One file per technology."""
