"""Stage retrain: which models a sweep taints, what is done about each, and that it was done.

`handler` takes the events, `world` is the model registry in memory, `jobs` queues and merges, `weights` destroys files,
`standing` answers people and deployment gates.
"""

from expunge.stages.retrain.handler import Retrain

__all__ = ["Retrain"]
