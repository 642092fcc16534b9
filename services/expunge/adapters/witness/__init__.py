"""Witnesses: other people's cosigners (C2SP tlog-witness)."""
