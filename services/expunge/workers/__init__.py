"""Hosts for stages: delivery (what is done around a batch), the Faust agent (the one safe shape), health.

The only folder that imports Faust. Stages come in as `ports.Handler`; wiring decides which worker hosts which.
"""
