"""What makes stored state another model's, and what does not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from kvtier import Store

pytest.importorskip("llama_cpp")

from kvtier_adapters.llama_cpp import Fingerprint, fingerprint
from kvtier_adapters.llama_cpp.fingerprint import NAMESPACE, file_id, model_id, remember

PRINT = Fingerprint(
    model="ab" * 32,
    arch="llama",
    n_layer=30,
    n_embd=576,
    n_head_kv=3,
    n_swa=0,
    type_k=1,
    type_v=1,
    flash_attn=0,
    attention_type=-1,
    rope_scaling_type=-1,
    rope_freq_base=0.0,
    rope_freq_scale=0.0,
    yarn_ext_factor=-1.0,
    yarn_attn_factor=1.0,
    yarn_beta_fast=32.0,
    yarn_beta_slow=1.0,
    yarn_orig_ctx=0,
    long_context=False,
    kv_overrides="",
    lora="",
    memory="rows",
    identity="",
    engine="llama-cpp-python 1",
    block_tokens=256,
)
OTHER: dict[type, Any] = {str: "other", int: 77, float: 0.25, bool: True}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(PRINT)])
def test_every_field_changes_the_digest_and_is_named(name: str) -> None:
    changed = dataclasses.replace(PRINT, **{name: OTHER[type(getattr(PRINT, name))]})
    assert changed.digest() != PRINT.digest()
    assert changed.difference(PRINT).startswith(f"{name} ")
    assert PRINT.difference(PRINT) == ""


def test_the_digest_is_stable_across_versions() -> None:
    """A change here orphans every store: change ``LAYOUT`` if that is meant."""
    pinned = dataclasses.replace(PRINT, byte_order="little", layout=2)
    assert pinned.digest().hex() == "8f30f21298796aa118dd43dd7123d3b21ba2b8136da7ddc9b64218ca975a3cbd"
    assert Fingerprint.from_json(PRINT.to_json()) == PRINT


def test_a_file_is_hashed_once_until_it_is_touched(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[object] = []

    class Counting:
        AUTO = blake3.AUTO

        def __new__(cls, *args: Any, **options: Any) -> Any:
            hashed.append(args)
            return blake3(*args, **options)

    monkeypatch.setattr(fingerprint, "blake3", Counting)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    expected = blake3(b"weights").hexdigest()
    assert [file_id(file, store), file_id(file, store)] == [expected, expected]
    assert len(hashed) == 1
    file.write_bytes(b"Weights")
    os.utime(file, ns=(1, 1))
    assert file_id(file, store) == blake3(b"Weights").hexdigest()
    assert len(hashed) == 2


def test_all_shards_of_a_model_count(tmp_path: Path, store: Store) -> None:
    names = [tmp_path / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for n, name in enumerate(names):
        name.write_bytes(bytes([n]))
    first = model_id(names[0], store)
    names[2].write_bytes(b"changed")
    assert model_id(names[0], store) != first
    names[1].unlink()
    with pytest.raises(FileNotFoundError):
        model_id(names[0], store)


def test_the_catalogue_remembers_the_others(store: Store) -> None:
    second, third = (dataclasses.replace(PRINT, model=c * 64) for c in "cd")
    assert remember(PRINT, store) == []
    assert remember(second, store) == [PRINT]
    assert remember(third, store) == [second, PRINT]
    assert remember(PRINT, store) == [third, second]


def test_a_catalogue_of_another_version_is_replaced(store: Store) -> None:
    for other in (b"not json", b'[{"model": "x"}]', b"[1]", b"{}"):
        store.put(b"catalogue", other, namespace=NAMESPACE)
        assert remember(PRINT, store) == []
        assert remember(PRINT, store) == []
