"""Recurrent models: a function for each, with what llama.cpp's ``src/models`` reads."""

from __future__ import annotations

from tests.tiny import layers
from tests.tiny.writer import EMBD, FF, HEAD, Tensors, Writer

_WKV_HEAD = 64  # of wkv7, llama.cpp writes past the end of a smaller one where the processor has AVX-512


def mamba(seed: str) -> Writer:
    w = Writer("mamba", seed, layers=4)
    layers.set_mamba(w, layers.TIME_STEP_RANK)
    w.embedding()
    w.output()
    for _, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        layers.mamba(b)
    return w


def mamba2(seed: str) -> Writer:
    w = Writer("mamba2", seed, layers=4)
    layers.set_mamba(w, layers.SSM_HEADS, layers.GROUPS)
    w.embedding()
    w.output()
    for _, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        layers.mamba2(b)
    return w


def rwkv6(seed: str) -> Writer:
    w = Writer("rwkv6", seed, layers=4)
    rank = 16
    w.set({"wkv.head_size": HEAD, "time_mix_extra_dim": rank, "time_decay_extra_dim": rank})
    _rwkv_ends(w)
    for _, b in w.blocks():
        _rwkv_common(b)
        b.normal("time_mix_w1.weight", EMBD, 5 * rank)
        b.normal("time_mix_w2.weight", rank, EMBD, 5, gain=0.5)
        b.uniform("time_mix_lerp_x.weight", 0.0, 1.0, EMBD, 1, 1)
        b.uniform("time_mix_lerp_fused.weight", 0.0, 1.0, EMBD, 1, 1, 5)
        b.uniform("time_mix_first.weight", 0.0, 1.0, HEAD, EMBD // HEAD)
        b.uniform("time_mix_decay.weight", -7.0, -4.0, EMBD)
        b.normal("time_mix_decay_w1.weight", EMBD, rank)
        b.normal("time_mix_decay_w2.weight", rank, EMBD, gain=0.5)
        b.normal("time_mix_gate.weight", EMBD, EMBD)
        b.uniform("channel_mix_lerp_r.weight", 0.0, 1.0, EMBD, 1, 1)
        b.normal("channel_mix_receptance.weight", EMBD, EMBD)
    return w


def rwkv7(seed: str) -> Writer:
    w = Writer("rwkv7", seed, layers=4)
    rank = 16
    names = {"decay": "w", "iclr": "a", "value_residual_mix": "v", "gate": "g"}
    w.set({"wkv.head_size": _WKV_HEAD, **{f"attention.{name}_lora_rank": rank for name in names}})
    _rwkv_ends(w)
    for _, b in w.blocks():
        _rwkv_common(b)
        b.uniform("time_mix_w0.weight", -7.0, -4.0, EMBD)
        b.zeros("time_mix_a0.weight", EMBD)
        b.zeros("time_mix_v0.weight", EMBD)
        for letter in names.values():
            b.normal(f"time_mix_{letter}1.weight", EMBD, rank)
            b.normal(f"time_mix_{letter}2.weight", rank, EMBD)
        b.uniform("time_mix_lerp_fused.weight", 0.0, 1.0, EMBD, 1, 1, 6)
        b.ones("time_mix_k_k.weight", EMBD)
        b.ones("time_mix_k_a.weight", EMBD)
        b.normal("time_mix_r_k.weight", EMBD)
    return w


def _rwkv_ends(w: Writer) -> None:
    w.set({"attention.head_count": 0, "attention.layer_norm_epsilon": 1e-5})
    w.embedding()
    w.ones("token_embd_norm.weight", EMBD)
    w.zeros("token_embd_norm.bias", EMBD)
    w.output()
    w.zeros("output_norm.bias", EMBD)


def _rwkv_common(b: Tensors) -> None:
    for norm in ("attn_norm", "attn_norm_2", "time_mix_ln"):
        b.ones(f"{norm}.weight", EMBD)
        b.zeros(f"{norm}.bias", EMBD)
    for name in ("key", "value", "receptance", "output"):
        b.normal(f"time_mix_{name}.weight", EMBD, EMBD)
    b.uniform("channel_mix_lerp_k.weight", 0.0, 1.0, EMBD, 1, 1)
    b.normal("channel_mix_key.weight", EMBD, FF)
    b.normal("channel_mix_value.weight", FF, EMBD)
