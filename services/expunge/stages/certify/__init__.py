"""Stage certify: which requests are done, their certificates, and the rows that go last.

`handler` takes the events, `finished` decides and makes certificates, `rows` takes rows out of the catalogue.
"""

from expunge.stages.certify.finished import round_file
from expunge.stages.certify.handler import Certify, destroy_bucket

__all__ = ["Certify", "destroy_bucket", "round_file"]
