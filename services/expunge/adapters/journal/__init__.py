"""The suppression journal: append-only, outside Postgres and its backups (`domain.suppression` has the records)."""
