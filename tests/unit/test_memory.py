from __future__ import annotations

import subprocess
import sys

import pytest

KEPT = """
import sys
from expunge.wiring.memory import give_back

def own():
    with open("/proc/self/status", encoding="ascii") as status:
        return int(status.read().partition("RssAnon:")[2].split(maxsplit=1)[0]) >> 10

if sys.argv[1] == "yes":
    assert give_back()
for _ in range(2):
    large = b"x" * (30 << 20)  # by itself the library keeps blocks of that size from its second on
    del large
before = own()
columns = [(b"x" * (4 << 20), bytearray(100_000)) for _ in range(16)]
small = [one for _, one in columns]
del columns
print(own() - before)
"""


def kept_mib(give_back: str) -> int:
    made = subprocess.run([sys.executable, "-c", KEPT, give_back], capture_output=True, text=True, check=True)
    return int(made.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc and /proc")
def test_what_is_freed_between_what_stays_goes_back_to_the_system() -> None:
    assert kept_mib("no") > 20, "expected a library that keeps it: else nothing is shown here"
    assert kept_mib("yes") < 10
