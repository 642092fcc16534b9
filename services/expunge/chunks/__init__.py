"""What the executors and the rescanner share: reading chunks from sealed scope files, claiming work orders, grouping
leaves by unit, and the signed outcome of a chunk. Stages use it; it imports no stage, no adapter, and emits nothing.
"""
