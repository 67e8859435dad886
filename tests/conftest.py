"""What all tests share. Hypothesis has no deadline: no test depends on how long anything takes."""

from hypothesis import settings

settings.register_profile("kvtier", deadline=None, print_blob=True)
settings.load_profile("kvtier")
