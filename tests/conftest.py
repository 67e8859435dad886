"""What all tests share. Hypothesis has no deadline: no test depends on how long anything takes.

Idle threads of llama.cpp do not spin: tests of several processes share the cores.
"""

import os

from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
settings.register_profile("kvtier", deadline=None, print_blob=True)
settings.load_profile("kvtier")
