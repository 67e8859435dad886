"""kvtier for llama-cpp-python: prompts seen before are restored, not evaluated. See :func:`attach`."""

from kvtier_adapters.llama_cpp.cache import Attachment, StoreCache, StoredState, attach
from kvtier_adapters.llama_cpp.fingerprint import Fingerprint
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.session import Session
from kvtier_adapters.llama_cpp.stats import SessionStats

__all__ = [
    "Attachment",
    "Fingerprint",
    "Options",
    "Session",
    "SessionStats",
    "StoreCache",
    "StoredState",
    "attach",
]
