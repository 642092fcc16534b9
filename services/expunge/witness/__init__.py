"""A witness of evidence logs (C2SP tlog-witness), run by an auditor, a regulator, a data protection officer: one small
process that sees sizes and roots, never an entry. Needs the core and aiohttp (extra `witness`).

`cosigner` judges, remembers and signs; `server` is its HTTP side.
"""
