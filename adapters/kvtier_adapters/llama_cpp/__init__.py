"""kvtier for llama-cpp-python: prompts seen before are restored, not evaluated. See :func:`attach`."""

from kvtier_adapters.llama_cpp.cache import Attachment, Progress, StoreCache, StoredState, attach
from kvtier_adapters.llama_cpp.context import Adapter, Context
from kvtier_adapters.llama_cpp.explain import PromptExplanation
from kvtier_adapters.llama_cpp.fingerprint import Fingerprint
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.sessions import LlamaSession, SequenceSession, Session, session
from kvtier_adapters.llama_cpp.stats import SessionStats

__all__ = [
    "Adapter",
    "Attachment",
    "Context",
    "Fingerprint",
    "LlamaSession",
    "Options",
    "Progress",
    "PromptExplanation",
    "SequenceSession",
    "Session",
    "SessionStats",
    "StoreCache",
    "StoredState",
    "attach",
    "session",
]
