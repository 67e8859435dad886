"""Models whose attention an indexer narrows: its keys are a cache of their own."""

from __future__ import annotations

from tests.tiny import layers
from tests.tiny.layers import attention, feed_forward, qk_norm, set_attention
from tests.tiny.writer import EMBD, FF, HEAD, Tensors, Writer


def qwen4exp(seed: str) -> Writer:
    """Hybrid, with a cache of indexer keys beside that of its attention layers."""
    w = Writer("qwen4exp", seed, layers=4)
    streams, rank = 2, 8
    set_attention(w, heads=2, kv_heads=1)
    layers.set_delta_net(w)
    layers.set_experts(w)
    _set_indexer(w)
    w.set(
        {
            "rope.dimension_sections": layers.MROPE,
            "full_attention_interval": 2,
            "attention.compress_ratios": [8] * 4,
            "hyper_connection.count": streams,
            "hyper_connection.low_rank": rank,
        }
    )
    w.embedding()
    w.unembedding()
    _hyper_connection(w, "output_hc", streams, rank)
    for il, b in w.blocks():
        for part in ("hc_attn", "hc_ffn"):
            _hyper_connection(b, part, streams, rank)
            b.normal(f"{part}_inject.weight", streams * EMBD, streams)
        if il % 2:
            attention(b, heads=2, kv_heads=1, gated=True)
            qk_norm(b)
            _indexer(b)
        else:
            layers.delta_net(b)
        layers.experts(b)
        b.normal("ffn_gate_inp_shexp.weight", EMBD)
    return w


def _hyper_connection(t: Tensors, name: str, streams: int, rank: int) -> None:
    t.ones(f"{name}_norm.weight", EMBD, streams)
    t.normal(f"{name}_down.weight", streams * EMBD, rank)
    t.normal(f"{name}_up.weight", rank, streams * EMBD)


def minimax_m3(seed: str) -> Writer:
    """Attention, with a cache of indexer keys for the layers after the first."""
    w = Writer("minimax-m3", seed, layers=4)
    heads, kv_heads = 4, layers.INDEXER_HEADS
    set_attention(w, heads, kv_heads)
    layers.set_experts(w)
    _set_indexer(w, top_k=4)
    w.set(
        {
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "attention.indexer.block_size": 16,
            "attention.indexer.local_blocks": 1,
        }
    )
    w.embedding()
    w.output()
    for il, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        attention(b, heads, kv_heads)
        qk_norm(b)
        if il == 0:
            feed_forward(b)
        else:
            b.ones("ffn_norm.weight", EMBD)
            layers.experts(b)
            b.zeros("exp_probs_b.bias", layers.EXPERTS)
            _indexer(b)
    return w


def deepseek32(seed: str) -> Writer:
    """Latent attention to the tokens that an indexer chooses; its keys are a second cache."""
    w = Writer("deepseek32", seed, layers=4)
    size = 64  # its keys are turned by a Hadamard matrix, of which this is the smallest
    layers.set_latent_attention(w, heads=2)
    _set_indexer(w, size=size)
    w.set(
        {
            "leading_dense_block_count": 4,
            "expert_feed_forward_length": FF,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
        }
    )
    w.embedding()
    w.output()
    for _, b in w.blocks():
        b.ones("attn_norm.weight", EMBD)
        layers.latent_attention(b, heads=2)
        b.ones("indexer.k_norm.weight", size)
        b.zeros("indexer.k_norm.bias", size)
        b.normal("indexer.proj.weight", EMBD, layers.INDEXER_HEADS)
        b.normal("indexer.attn_k.weight", EMBD, size)
        b.normal("indexer.attn_q_b.weight", layers.Q_RANK, layers.INDEXER_HEADS * size)
        feed_forward(b)
    return w


def _set_indexer(w: Writer, top_k: int = layers.INDEXER_TOP_K, size: int = HEAD) -> None:
    w.set(
        {
            "attention.indexer.head_count": layers.INDEXER_HEADS,
            "attention.indexer.key_length": size,
            "attention.indexer.top_k": top_k,
        }
    )


def _indexer(b: Tensors) -> None:
    b.normal("indexer.q_proj.weight", EMBD, layers.INDEXER_HEADS * HEAD)
    b.normal("indexer.k_proj.weight", EMBD, HEAD)
    b.ones("indexer.q_norm.weight", HEAD)
    b.ones("indexer.k_norm.weight", HEAD)
