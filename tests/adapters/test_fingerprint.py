"""What makes stored state another model's, and what does not."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from kvtier import Store
from tests import tiny_models
from tests.adapters import engine, tiny_llama
from tests.stores import MIB

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import gguf
import llama_cpp

from kvtier_adapters.llama_cpp import Fingerprint, LlamaSession, attach, binding, fingerprint, sessions
from kvtier_adapters.llama_cpp.fingerprint import LAYOUT, NAMESPACE, file_id, model_id, remember
from kvtier_adapters.llama_cpp.memory import opaque

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
    kv_unrotated=False,
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
    assert pinned.digest().hex() == "cba007fff7da862d10e52d1bae80106c2552f5b468266f1966ed4274243df0c2"
    assert Fingerprint.from_json(PRINT.to_json()) == PRINT


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"5", b"[" * 5000])
def test_what_is_no_fingerprint_is_refused(text: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Fingerprint.from_json(text)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each file that was hashed, in order."""
    sizes: list[int] = []

    class Counting:
        AUTO = blake3.AUTO

        def __init__(self, *args: Any, **options: Any) -> None:
            self._hash = blake3(*args, **options)

        def update_mmap(self, path: Path) -> Any:
            sizes.append(path.stat().st_size)
            return self._hash.update_mmap(path)

    monkeypatch.setattr(fingerprint, "blake3", Counting)
    return sizes


def test_a_file_is_hashed_once_until_it_is_touched(tmp_path: Path, store: Store, hashed: list[int]) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    expected = blake3(b"weights").hexdigest()
    assert [file_id(file, store), file_id(file, store)] == [expected, expected]
    assert hashed == [7]
    file.write_bytes(b"Weights")
    os.utime(file, ns=(1, 1))
    assert file_id(file, store) == blake3(b"Weights").hexdigest()
    assert hashed == [7, 7]


def test_another_start_reads_nothing_of_a_big_model(tmp_path: Path, hashed: list[int]) -> None:
    """Its weights are hashed once in the life of the store, not of the process."""
    file = tmp_path / "model.gguf"
    shutil.copy(tiny_models.path("mha"), file)
    os.truncate(file, 64 * MIB)  # a hole behind the tensors
    for _ in range(2):
        with (
            tiny_llama.loaded(file) as llm,
            Store.open(tmp_path / "store") as store,
            attach(llm, store) as attached,
        ):
            assert attached.session.fingerprint is not None
            assert len(attached.session.fingerprint.model) == 64
        assert hashed == [64 * MIB]


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
    for other in (b"not json", b'[{"model": "x"}]', b"[1]", b"{}", b"[" * 5000):
        store.put(b"catalogue", other, namespace=NAMESPACE)
        assert remember(PRINT, store) == []
        assert remember(PRINT, store) == []


# -- end to end: a model that is loaded anew with something changed ----------------------------------------

STORED = 200


def of_other_weights(folder: Path) -> Path:
    return tiny_models.MODELS["mha"].build("other weights").write(folder / "model.gguf")


def quantised(folder: Path) -> Path:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    target = folder / "model.gguf"
    assert llama_cpp.llama_model_quantize(str(tiny_models.path("mha")).encode(), str(target).encode(), params) == 0
    return target


def lora(folder: Path, seed: int = 1) -> str:
    """A LoRA adapter of rank 4 on Q, K and V of the first layer."""
    random, width = np.random.RandomState(seed), 64
    file = folder / f"lora-{seed}.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    outputs = {tensor.name: int(tensor.shape[-1]) for tensor in gguf.GGUFReader(tiny_models.path("mha")).tensors}
    for name in ("attn_q", "attn_k", "attn_v"):
        wide = outputs[f"blk.0.{name}.weight"]
        writer.add_tensor(f"blk.0.{name}.weight.lora_a", random.standard_normal((4, width)).astype(np.float32))
        writer.add_tensor(f"blk.0.{name}.weight.lora_b", random.standard_normal((wide, 4)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def answered(llm: llama_cpp.Llama, store: Store, **options: Any) -> tuple[list[int], int, dict[str, int]]:
    """The answer to the prompt, how many of its tokens were restored, and why not more."""
    with attach(llm, store, **options) as attached:
        answer = engine.greedy(llm, engine.prompt(llm, STORED + 20), 8)
        stats = attached.stats
    assert stats.errors == {}
    return answer, stats.tokens_restored, dict(stats.misses)


def captured(store: Store, file: Path | None = None, **changes: Any) -> None:
    with tiny_llama.loaded(file or "mha", flash_attn=True, **changes) as llm:
        engine.stored(llm, store, engine.prompt(llm, STORED))


def misses(field: str, store: Store, file: Path | None = None, **changes: Any) -> list[int]:
    """With the changes nothing is restored, and the reason is this field alone; the answer, which is a right one."""
    options = {name: changes.pop(name) for name in ("identity", "block_tokens") if name in changes}
    with tiny_llama.loaded(file or "mha", **{"flash_attn": True, **changes}) as llm:
        expected = tiny_llama.cold(llm, engine.prompt(llm, STORED + 20), 8)
        answer, restored, why = answered(llm, store, **options)
    assert (answer, restored) == (expected, 0)
    (reason,) = why
    assert re.match(rf"fingerprint differs: {field} .*->", reason), reason
    assert reason.count(" -> ") == 1
    return answer


def test_the_same_model_in_another_file_is_a_hit(tmp_path: Path, store: Store) -> None:
    captured(store)
    file = Path(shutil.copy(tiny_models.path("mha"), tmp_path / "renamed.gguf"))
    settings = {"n_ctx": 512, "n_batch": 64, "n_ubatch": 32, "n_threads": 2}
    with tiny_llama.loaded(file, flash_attn=True, **settings) as llm:
        assert answered(llm, store)[1:] == (STORED, {})


@pytest.mark.parametrize("made", [of_other_weights, quantised])
def test_other_weights_are_another_model(made: Callable[[Path], Path], tmp_path: Path, store: Store) -> None:
    captured(store)
    misses("model", store, made(tmp_path))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("type_k", {"type_k": llama_cpp.GGML_TYPE_Q8_0}),
        ("type_v", {"type_v": llama_cpp.GGML_TYPE_Q8_0}),
        ("flash_attn", {"flash_attn": False}),
        ("rope_freq_base", {"rope_freq_base": 20000.0}),
        ("rope_freq_scale", {"rope_freq_scale": 0.5}),
        ("rope_scaling_type", {"rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR}),
        ("yarn_ext_factor", {"yarn_ext_factor": 0.5}),
        ("yarn_attn_factor", {"yarn_attn_factor": 0.5}),
        ("yarn_beta_fast", {"yarn_beta_fast": 16.0}),
        ("yarn_beta_slow", {"yarn_beta_slow": 2.0}),
        ("yarn_orig_ctx", {"yarn_orig_ctx": 512}),
        ("kv_overrides", {"kv_overrides": {"llama.attention.layer_norm_rms_epsilon": 0.01}}),
        ("identity", {"identity": "control vector 7"}),
        ("block_tokens", {"block_tokens": 128}),
    ],
)
def test_a_setting_that_changes_the_state_is_a_miss(field: str, changes: dict[str, Any], store: Store) -> None:
    captured(store)
    misses(field, store, **changes)


def test_a_lora_adapter_and_its_scale_are_part_of_the_model(tmp_path: Path, store: Store) -> None:
    captured(store)
    answers = {tuple(misses("lora", store, lora_path=lora(tmp_path)))}
    answers.add(tuple(misses("lora", store, lora_path=lora(tmp_path), lora_scale=0.25)))
    answers.add(tuple(misses("lora", store, lora_path=lora(tmp_path, seed=2))))
    with tiny_llama.loaded("mha", flash_attn=True, lora_path=lora(tmp_path)) as llm:
        assert answered(llm, store)[1] == STORED + 19, "what it stored itself"
    assert len(answers) == 3, "adapters that change nothing would show nothing"


def test_another_stored_form_is_a_miss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    captured(store)
    original = fingerprint.fingerprint_of

    def newer(*args: Any, **options: Any) -> Fingerprint:
        return dataclasses.replace(original(*args, **options), layout=LAYOUT + 1)

    monkeypatch.setattr(binding, "fingerprint_of", newer)
    misses("layout", store)


def test_another_version_of_the_engine_is_a_miss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    captured(store)
    monkeypatch.setattr(llama_cpp, "__version__", "99.0")
    misses("engine", store)


def test_state_taken_apart_otherwise_is_a_miss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    captured(store)
    monkeypatch.setattr(sessions, "detect", lambda _: opaque("for once"))
    misses("memory", store)


def test_a_context_beyond_the_original_one_is_a_miss(tmp_path: Path, store: Store) -> None:
    """Models with LongRoPE then turn K by other factors."""
    writer = tiny_models.MODELS["mha"].build("mha")
    writer.set({"rope.scaling.original_context_length": 512})
    file = writer.write(tmp_path / "long.gguf")
    captured(store, file, n_ctx=512)
    with tiny_llama.loaded(file, flash_attn=True, n_ctx=256) as llm:
        assert answered(llm, store)[1] == STORED
    misses("long_context", store, file, n_ctx=1024)


def test_a_switch_of_llama_cpp_that_no_parameter_tells_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set, quantised K and V are not turned: rows of the other kind load, and the answer is another."""
    from llama_cpp import GGML_TYPE_Q8_0

    quantised = {"type_k": GGML_TYPE_Q8_0, "type_v": GGML_TYPE_Q8_0, "flash_attn": True}
    with tiny_llama.loaded("gqa", **quantised) as llm:
        prompt = engine.prompt(llm, 100)
        engine.stored(llm, store, prompt)
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    with tiny_llama.loaded("gqa", **quantised) as llm:
        session = LlamaSession(llm, store)
        assert session.position(prompt) == 0
        assert session.stats.misses == {"fingerprint differs: kv_unrotated False -> True": 1}
