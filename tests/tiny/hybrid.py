"""Models of attention and recurrent layers: a function for each, with what llama.cpp's ``src/models`` reads."""

from __future__ import annotations

from collections.abc import Callable

from tests.tiny import layers
from tests.tiny.layers import attention, feed_forward, qk_norm, set_attention
from tests.tiny.writer import EMBD, Writer


def jamba(seed: str) -> Writer:
    w = Writer("jamba", seed, layers=4)
    kv_heads = [0, 1, 0, 1]
    set_attention(w, 2, kv_heads)
    layers.set_mamba(w, layers.TIME_STEP_RANK)
    w.embedding()
    w.output()
    for il, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        if kv_heads[il]:
            attention(b, 2, kv_heads[il])
        else:
            layers.mamba(b)
            b.ones("ssm_dt_norm.weight", layers.TIME_STEP_RANK)
            b.ones("ssm_b_norm.weight", layers.STATE)
            b.ones("ssm_c_norm.weight", layers.STATE)
        feed_forward(b)
    return w


def falcon_h1(seed: str) -> Writer:
    w = Writer("falcon-h1", seed, layers=4)
    set_attention(w, heads=4, kv_heads=2)
    layers.set_mamba(w, layers.SSM_HEADS, layers.GROUPS)
    w.embedding()
    w.output()
    for _, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        attention(b, heads=4, kv_heads=2)
        layers.mamba2(b)
        feed_forward(b, norm="ffn_norm")
    return w


def lfm2(kv_heads: list[int], window: int = 0) -> Callable[[str], Writer]:
    """Layers of short convolution where ``kv_heads`` is 0; a window is in all the others."""

    def build(seed: str) -> Writer:
        w = Writer("lfm2", seed, len(kv_heads))
        kernel = 3
        set_attention(w, 2, kv_heads)
        w.set({"shortconv.l_cache": kernel})
        if window:
            w.set({"attention.sliding_window": window})
        w.embedding(gain=1.0)
        w.output(norm="token_embd_norm")
        for il, b in w.blocks():
            b.ones("attn_norm.weight", EMBD)
            if kv_heads[il]:
                attention(b, 2, kv_heads[il])
                qk_norm(b)
            else:
                b.normal("shortconv.conv.weight", kernel, EMBD)
                b.normal("shortconv.in_proj.weight", EMBD, 3 * EMBD)
                b.normal("shortconv.out_proj.weight", EMBD, EMBD)
            feed_forward(b)
        return w

    return build


def qwen35(seed: str) -> Writer:
    w = Writer("qwen35", seed, layers=4)
    set_attention(w, heads=2, kv_heads=1)
    layers.set_delta_net(w)
    w.set({"rope.dimension_sections": layers.MROPE, "full_attention_interval": 2})
    w.embedding()
    w.output()
    for il, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        if il % 2:
            attention(b, heads=2, kv_heads=1, gated=True)
            qk_norm(b)
        else:
            layers.delta_net(b)
        feed_forward(b, norm="post_attention_norm.weight")
    return w
