"""Freed memory stays with the process once it is asked to keep it."""

import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import sys
import threading

import numpy as np

from eosjax.training.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def allocate():
    [np.ones(20 << 20, np.uint8) for _ in range(10)]  # each would fit into a heap of the thread's own


thread = threading.Thread(target=allocate)
thread.start()
thread.join()
pages = int(open('/proc/self/statm').read().split()[1])
print(pages * 4096 >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_blocks_that_a_thread_frees_stay_mapped():
    """XLA's threads allocate. The second process shows what would happen without the call, so that the first cannot pass by accident."""
    kept, returned = (int(subprocess.check_output([sys.executable, "-c", _SCRIPT, mode])) for mode in ("keep", "default"))
    assert kept > returned + 150
