"""What makes two KV states incompatible, as one value.

llama.cpp checks layer counts, types and row sizes when it loads a state; it does not check weights,
quantisation, LoRA, RoPE settings or its own version. A prefix key therefore begins with the digest of this
fingerprint: another model or setting simply does not find the blocks.

Left out on purpose, because the rows are the same: file *names*, ``n_ctx`` (but see ``long_context``),
batch sizes, threads, where layers run, and ``swa_full`` (a window is stored without the masked rows).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import struct
import sys
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
from blake3 import blake3

from kvtier import Hit, ReadOnlyStore
from kvtier_adapters.llama_cpp.context import Context
from kvtier_adapters.llama_cpp.memory import Memory

if TYPE_CHECKING:
    from kvtier import Store

#: Of the stored form of a piece (:mod:`.state`) and of the keys (:mod:`kvtier_adapters.prefix`).
LAYOUT = 2
NAMESPACE = b"kvtier.models"

_CATALOGUE = b"catalogue"
_CATALOGUE_MAX = 64
_FILE = struct.Struct("<5q")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class Fingerprint:
    """Everything that a stored state depends on. Two equal fingerprints may share state."""

    model: str
    """BLAKE3 of the model file's content (of all its shards), hex."""
    arch: str
    n_layer: int
    n_embd: int
    n_head_kv: int
    n_swa: int
    type_k: int
    type_v: int
    flash_attn: int
    attention_type: int
    rope_scaling_type: int
    rope_freq_base: float
    rope_freq_scale: float
    yarn_ext_factor: float
    yarn_attn_factor: float
    yarn_beta_fast: float
    yarn_beta_slow: float
    yarn_orig_ctx: int
    long_context: bool
    """The context is longer than the model's original one: LongRoPE models then use other factors."""
    kv_overrides: str
    lora: str
    """BLAKE3 of each LoRA file and its scale, or empty."""
    kv_unrotated: bool
    """``LLAMA_ATTN_ROT_DISABLE`` is set: llama.cpp then does not turn quantised K and V."""
    memory: str
    """How the state is taken apart: see :class:`.Memory`."""
    identity: str
    """What the user says that changes the state besides."""
    engine: str
    """llama-cpp-python's version: llama.cpp does not version its sequence state."""
    block_tokens: int
    byte_order: str = sys.byteorder
    layout: int = LAYOUT

    def digest(self) -> bytes:
        """32 bytes that identify the fingerprint."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> bytes:
        return blake2b(self.to_json(), digest_size=32, person=b"kvtier.model").digest()

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Fingerprint:
        """Raises ``ValueError`` or ``TypeError`` if the text is not a fingerprint of this version."""
        try:
            return cls(**json.loads(text))
        except RecursionError as e:
            raise ValueError("nested too deeply to be a fingerprint") from e

    def difference(self, other: Fingerprint) -> str:
        """What changed from ``other`` to this one, as ``"type_k 1 -> 8, lora ..."``; empty if nothing."""
        changes = []
        for field in dataclasses.fields(self):
            before, after = getattr(other, field.name), getattr(self, field.name)
            if before != after:
                changes.append(f"{field.name} {_short(field.name, before)} -> {_short(field.name, after)}")
        return ", ".join(changes)


def fingerprint_of(context: Context, memory: Memory, store: Store, *, block_tokens: int) -> Fingerprint:
    """The fingerprint of a loaded model. Reads the model file once; later starts find its hash in the store.

    Raises ``OSError`` if the model (or a LoRA) file cannot be read.
    """
    params, model = context.params, context.model
    loras = sorted(f"{file_id(adapter.path, store)} * {adapter.scale}" for adapter in context.adapters)
    return Fingerprint(
        model=model_id(context.model_path, store),
        arch=context.metadata("general.architecture"),
        n_layer=int(llama_cpp.llama_model_n_layer(model)),
        n_embd=int(llama_cpp.llama_model_n_embd(model)),
        n_head_kv=int(llama_cpp.llama_model_n_head_kv(model)),
        n_swa=context.n_swa,
        type_k=int(params.type_k),
        type_v=int(params.type_v),
        flash_attn=int(params.flash_attn_type),
        attention_type=int(params.attention_type),
        rope_scaling_type=int(params.rope_scaling_type),
        rope_freq_base=float(params.rope_freq_base),
        rope_freq_scale=float(params.rope_freq_scale),
        yarn_ext_factor=float(params.yarn_ext_factor),
        yarn_attn_factor=float(params.yarn_attn_factor),
        yarn_beta_fast=float(params.yarn_beta_fast),
        yarn_beta_slow=float(params.yarn_beta_slow),
        yarn_orig_ctx=int(params.yarn_orig_ctx),
        long_context=_long_context(context),
        kv_overrides=repr(list(context.overrides)) if context.overrides else "",
        lora=", ".join(loras),
        kv_unrotated=bool(re.match(r"\s*[+-]?0*[1-9]", os.environ.get("LLAMA_ATTN_ROT_DISABLE", ""))),  # as atoi
        memory=str(memory),
        identity=context.identity,
        engine=f"llama-cpp-python {llama_cpp.__version__}",
        block_tokens=block_tokens,
    )


def model_id(path: Path, store: Store) -> str:
    """Content id of a GGUF file; of all shards where the name says ``-00001-of-0000N``."""
    shard = _SHARD.search(path.name)
    if shard is None:
        return file_id(path, store)
    stem, count = path.name[: shard.start()], int(shard.group(2))
    ids = [file_id(path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf"), store) for n in range(1, count + 1)]
    return blake3("".join(ids).encode()).hexdigest()


def file_id(path: Path, store: Store) -> str:
    """BLAKE3 of a file's content, hex; remembered in the store for as long as the file is not touched."""
    stat = os.stat(path)
    key = b"file" + _FILE.pack(
        stat.st_dev, stat.st_ino & (1 << 63) - 1, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    )
    known = _read(store, key)
    if known is not None and len(known) == 32:
        return known.hex()
    digest = blake3(max_threads=blake3.AUTO).update_mmap(path).digest()
    _write(store, key, digest)
    return digest.hex()


def remember(fingerprint: Fingerprint, store: Store) -> list[Fingerprint]:
    """Enter the fingerprint in the store's catalogue; the others there, the most recently added first."""
    others = [known for known in catalogue(store) if known != fingerprint][: _CATALOGUE_MAX - 1]
    entries: list[Any] = [json.loads(known.to_json()) for known in (fingerprint, *others)]
    _write(store, _CATALOGUE, json.dumps(entries, sort_keys=True).encode())
    return others


def catalogue(store: Store) -> list[Fingerprint]:
    """The fingerprints that state was stored under, the most recently used first. They explain misses, no more."""
    found = []
    try:
        for entry in json.loads(_read(store, _CATALOGUE) or b"[]"):
            found.append(Fingerprint(**entry))
    except (ValueError, TypeError, RecursionError):
        return found  # written by another version: it only explains misses
    return found


def _read(store: Store, key: bytes) -> bytes | None:
    found = store.get(key, namespace=NAMESPACE)
    return b"".join(found.buffers) if isinstance(found, Hit) else None


def _write(store: Store, key: bytes, value: bytes) -> None:
    with contextlib.suppress(ReadOnlyStore):  # a store to restore from only is of use too
        store.put(key, value, namespace=NAMESPACE)


def _long_context(context: Context) -> bool:
    original = context.metadata("{arch}.rope.scaling.original_context_length")
    return bool(original) and context.n_ctx > int(original)


def _short(name: str, value: object) -> str:
    return f"{value:.12}" if name in ("model", "lora") and isinstance(value, str) else str(value)
