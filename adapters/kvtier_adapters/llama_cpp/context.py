"""One llama.cpp context: the pointer, and what the C API does not tell of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp

if TYPE_CHECKING:
    from llama_cpp import Llama

_TEXT_MAX = 1 << 10


class ContextClosed(RuntimeError):
    """The context was freed by its owner."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that is set on a context: its file, and the scale it is applied with."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Context:
    """A ``llama_context`` and how it was made, for :func:`.session`; ``Context.of`` for a ``Llama``.

    ``params``, ``adapters`` and ``overrides`` cannot be read from a context: they must be what it was made
    with, for they decide which stored state it may use. Thread rules: those of the context.
    """

    pointer: Callable[[], Any]
    """The ``llama_context_p``; None once it was freed."""
    params: llama_cpp.llama_context_params
    """What ``llama_init_from_model`` was given, and the actual values where it changed them."""
    model_path: Path
    """The GGUF file, or the first of its shards."""
    adapters: tuple[Adapter, ...] = ()
    overrides: tuple[tuple[str, Any], ...] = ()
    """``kv_overrides`` of the model."""
    identity: str = ""
    """Anything else that changes what the model computes: control vectors, a patched build."""

    @classmethod
    def of(cls, llm: Llama, identity: str = "") -> Context:
        """The context of a ``Llama``. LoRA adapters set through the C API are not seen: name them in ``identity``."""
        lora = [Adapter(Path(llm.lora_path), float(llm.lora_scale))] if llm.lora_path else []
        return cls(
            pointer=lambda: llm.ctx,
            params=llm.context_params,
            model_path=Path(llm.model_path),
            adapters=tuple(lora),
            overrides=tuple(sorted((llm.kv_overrides or {}).items())),
            identity=identity,
        )

    @property
    def handle(self) -> Any:
        """Raises :class:`ContextClosed`."""
        handle = self.pointer()
        if handle is None:
            raise ContextClosed("the model was closed")
        return handle

    @property
    def model(self) -> Any:
        return llama_cpp.llama_get_model(self.handle)

    @property
    def memory(self) -> Any:
        """The ``llama_memory_t``, or None in a context without any."""
        return llama_cpp.llama_get_memory(self.handle)

    @property
    def n_ctx(self) -> int:
        """Tokens that one sequence can hold."""
        return int(llama_cpp.llama_n_ctx_seq(self.handle))

    @property
    def n_swa(self) -> int:
        """Positions of the model's sliding window; 0: none."""
        return int(llama_cpp.llama_model_n_swa(self.model))

    @property
    def n_seq_max(self) -> int:
        return int(llama_cpp.llama_n_seq_max(self.handle))

    def metadata(self, key: str) -> str:
        """A value of the model file's metadata; empty where there is none. ``{arch}`` stands for the architecture."""
        if "{arch}" in key:
            key = key.format(arch=self.metadata("general.architecture"))
        text = ctypes.create_string_buffer(_TEXT_MAX)
        length = llama_cpp.llama_model_meta_val_str(self.model, key.encode(), text, _TEXT_MAX)
        return text.value.decode(errors="replace") if length >= 0 else ""
