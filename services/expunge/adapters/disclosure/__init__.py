"""Encryption to somebody else's key: what a regulator is given, only the regulator reads."""
