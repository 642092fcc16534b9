"""Time stamping authorities (RFC 3161)."""
