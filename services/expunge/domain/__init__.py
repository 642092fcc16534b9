"""Pure domain: values in, values out. No clock, no I/O, no environment, no randomness; time and ids are arguments.

Everything that `expunge verify` needs lives here and imports only the light core (pydantic, cryptography, rfc8785).
`sweep` and `taint` also need numpy and pyroaring (the `worker` extra).
"""
