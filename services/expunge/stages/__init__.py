"""One handler per stage of the pipeline (`pipeline.py`). Stages never import each other: they meet through events and rows."""
