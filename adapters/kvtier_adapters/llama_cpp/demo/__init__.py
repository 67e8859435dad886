"""``kvtier demo``: a long prompt survives ``kill -9``. One file a step:

``prompt`` (the model and the text) -> ``run`` (processes, the kill, the comparison) -> ``worker`` (what
happens in each process) -> ``command`` (options and output).
"""

from kvtier_adapters.llama_cpp.demo.command import command

__all__ = ["command"]
