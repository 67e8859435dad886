"""The models that the server loads, each attached to the one store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kvtier import KvtierError
from kvtier_adapters.llama_cpp.cache import attach
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.server.console import say
from kvtier_adapters.llama_cpp.stats import SessionStats

if TYPE_CHECKING:
    from llama_cpp import Llama
    from llama_cpp.server.settings import ModelSettings

    from kvtier import Store


class Models:
    """Loads models as the server does, with ``load``, and attaches each until the server closes it.

    The server has one model at a time. Threads: those of the server, which loads and runs a model in one
    thread at a time; :meth:`report` may be called from any.
    """

    def __init__(self, load: Callable[[ModelSettings], Llama], store: Store, options: Options) -> None:
        self._load = load
        self._store = store
        self._options = options
        self._model = ""
        self._stats = SessionStats()
        self._cache_was_noted = False

    def load(self, settings: ModelSettings) -> Llama:
        """A model that is attached, or that goes without the store, and a line on stderr why."""
        llm = self._load(_storable(settings))
        self._model = settings.model_alias or settings.model
        self._stats = self._attach(llm, settings)
        if self._stats.refused:
            say(f"{self._model} is served without the store: {self._stats.refused}")
        elif settings.cache and not self._cache_was_noted:
            self._cache_was_noted = True
            say("the store takes the place of the server's own cache")
        return llm

    def report(self) -> dict[str, Any]:
        """The loaded model, what its attachment did since it was loaded, and the store; plain values."""
        return {"model": self._model, "session": self._stats.as_dict(), "store": self._store.stats().as_dict()}

    def _attach(self, llm: Llama, settings: ModelSettings) -> SessionStats:
        if settings.clip_model_path:  # its handler may be wrapped (chat_template_kwargs), so that attach cannot tell
            return SessionStats(refused="multimodal chat handler")
        try:
            attachment = attach(llm, self._store, **asdict(self._options))
        except (KvtierError, OSError) as error:
            return SessionStats(refused=f"{type(error).__name__}: {error}")
        llm._stack.callback(attachment.detach)  # what Llama.close() runs, this first
        return attachment.stats


def _storable(settings: ModelSettings) -> ModelSettings:
    """``settings`` with logits_all off unless it was asked for: nobody asks for it, the server has it on by default,
    and a prompt that is restored has no logits but the last."""
    if "logits_all" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"logits_all": False})
