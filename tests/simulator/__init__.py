"""Seeded schedules of the real stages under one scheduler: see `schedule.py`, and `python -m tests.simulator --help`."""
