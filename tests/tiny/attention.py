"""Models of attention, full or in windows: a function for each, with what llama.cpp's ``src/models`` reads."""

from __future__ import annotations

from collections.abc import Callable

from tests.tiny import layers
from tests.tiny.layers import attention, feed_forward, qk_norm, set_attention
from tests.tiny.writer import EMBD, FF, HEAD, Writer

WINDOW = 64
#: llama.cpp fixes the chunk of this architecture.
LLAMA4_CHUNK = 8192


def llama(heads: int, kv_heads: int, head: int = HEAD) -> Callable[[str], Writer]:
    def build(seed: str) -> Writer:
        w = Writer("llama", seed, layers=4)
        set_attention(w, heads, kv_heads, head)
        w.embedding()
        w.output()
        for _, b in w.blocks():
            b.ones("attn_norm.weight", EMBD)
            attention(b, heads, kv_heads, head)
            feed_forward(b)
        return w

    return build


def deepseek2(seed: str) -> Writer:
    w = Writer("deepseek2", seed, layers=4)
    layers.set_latent_attention(w, heads=2)
    w.set({"leading_dense_block_count": 4, "expert_feed_forward_length": FF, "expert_shared_count": 1})
    w.embedding()
    w.output()
    for _, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        layers.latent_attention(b, heads=2)
        feed_forward(b)
    return w


def qwen2vl(seed: str) -> Writer:
    w = Writer("qwen2vl", seed, layers=4)
    set_attention(w, heads=2, kv_heads=1)
    w.set({"rope.dimension_sections": layers.MROPE})
    w.embedding()
    w.output()
    for _, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        attention(b, heads=2, kv_heads=1)
        feed_forward(b)
    return w


def gemma3(seed: str) -> Writer:
    w = Writer("gemma3", seed, layers=6)
    set_attention(w, heads=4, kv_heads=2)
    w.set({"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": [True, True, False] * 2})
    w.embedding(gain=1.0)  # llama.cpp multiplies it by 8
    w.output()
    for _, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        attention(b, heads=4, kv_heads=2)
        qk_norm(b)
        b.ones("post_attention_norm.weight", EMBD)
        feed_forward(b)
        b.ones("post_ffw_norm.weight", EMBD)
    return w


def llama4(seed: str) -> Writer:
    w = Writer("llama4", seed, layers=4)
    set_attention(w, heads=4, kv_heads=2)
    layers.set_experts(w)
    w.set({"interleave_moe_layer_step": 2})
    w.embedding()
    w.output()
    for il, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        attention(b, heads=4, kv_heads=2)
        if il % 2:
            b.ones("ffn_norm.weight", EMBD)
            layers.experts(b)
        else:
            feed_forward(b)
    return w
