"""The parts that layers of several architectures have in common."""

from __future__ import annotations

import numpy as np

from tests.tiny.writer import EMBD, FF, HEAD, Tensors, Writer

#: Experts, experts per token, width of one.
EXPERTS, EXPERTS_USED, EXPERT_FF = 4, 2, 32
#: Mamba, and the convolution before it.
CONV, INNER, STATE, TIME_STEP_RANK, GROUPS, SSM_HEADS = 4, 2 * EMBD, 16, 8, 2, 4
#: Biases of time steps before the softplus: state decays slowly, and token 0 matters hundreds of tokens later.
_TIME_STEPS = (-6.0, -4.0)
#: Gated delta net: value heads, key heads, size of one.
DELTA_HEADS, DELTA_KEY_HEADS, DELTA_HEAD = 4, 2, 32
#: Multi-head latent attention: ranks of Q and of K/V, sizes of a head's parts without and with RoPE.
Q_RANK, KV_RANK, NOPE, ROPE = 32, 64, 32, 32
#: Shares of an attention head's pairs that turn with time, height, width and nothing (M-RoPE).
MROPE = [6, 5, 5, 0]
#: Sparse attention: heads of the indexer that chooses, and the tokens that it chooses.
INDEXER_HEADS, INDEXER_TOP_K = 2, 64


def set_attention(w: Writer, heads: int, kv_heads: int | list[int], head: int = HEAD) -> None:
    w.set(
        {
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head,
            "attention.value_length": head,
            "rope.dimension_count": head,
        }
    )


def attention(b: Tensors, heads: int, kv_heads: int, head: int = HEAD, *, gated: bool = False) -> None:
    """A gate of the output is projected together with Q."""
    b.normal("attn_q.weight", EMBD, heads * head * (2 if gated else 1), gain=1.5)
    b.normal("attn_k.weight", EMBD, kv_heads * head, gain=1.5)
    b.normal("attn_v.weight", EMBD, kv_heads * head)
    b.normal("attn_output.weight", heads * head, EMBD)


def qk_norm(b: Tensors) -> None:
    """With weights over 1, lest attention be spread evenly over the context."""
    b.uniform("attn_q_norm.weight", 1.0, 2.0, HEAD)
    b.uniform("attn_k_norm.weight", 1.0, 2.0, HEAD)


def feed_forward(b: Tensors, norm: str = "ffn_norm.weight") -> None:
    b.ones(norm, EMBD)
    b.normal("ffn_gate.weight", EMBD, FF)
    b.normal("ffn_up.weight", EMBD, FF)
    b.normal("ffn_down.weight", FF, EMBD)


def set_experts(w: Writer) -> None:
    w.set(
        {
            "expert_count": EXPERTS,
            "expert_used_count": EXPERTS_USED,
            "expert_feed_forward_length": EXPERT_FF,
            "expert_shared_feed_forward_length": EXPERT_FF,
        }
    )


def experts(b: Tensors) -> None:
    """Routed experts and a shared one."""
    b.normal("ffn_gate_inp.weight", EMBD, EXPERTS)
    b.normal("ffn_gate_exps.weight", EMBD, EXPERT_FF, EXPERTS)
    b.normal("ffn_up_exps.weight", EMBD, EXPERT_FF, EXPERTS)
    b.normal("ffn_down_exps.weight", EXPERT_FF, EMBD, EXPERTS)
    b.normal("ffn_gate_shexp.weight", EMBD, EXPERT_FF)
    b.normal("ffn_up_shexp.weight", EMBD, EXPERT_FF)
    b.normal("ffn_down_shexp.weight", EXPERT_FF, EMBD)


def set_latent_attention(w: Writer, heads: int) -> None:
    """As llama.cpp has it after absorption: one K head of rank + RoPE, of which V is a part."""
    w.set(
        {
            "attention.head_count": heads,
            "attention.head_count_kv": 1,
            "attention.key_length": KV_RANK + ROPE,
            "attention.value_length": KV_RANK,
            "attention.key_length_mla": NOPE + ROPE,
            "attention.value_length_mla": HEAD,
            "attention.q_lora_rank": Q_RANK,
            "attention.kv_lora_rank": KV_RANK,
            "rope.dimension_count": ROPE,
        }
    )


def latent_attention(b: Tensors, heads: int) -> None:
    b.ones("attn_q_a_norm.weight", Q_RANK)
    b.ones("attn_kv_a_norm.weight", KV_RANK)
    b.normal("attn_q_a.weight", EMBD, Q_RANK)
    b.normal("attn_q_b.weight", Q_RANK, heads * (NOPE + ROPE), gain=1.5)
    b.normal("attn_kv_a_mqa.weight", EMBD, KV_RANK + ROPE)
    b.normal("attn_k_b.weight", NOPE, KV_RANK, heads)
    b.normal("attn_v_b.weight", KV_RANK, HEAD, heads)
    b.normal("attn_output.weight", heads * HEAD, EMBD)


def set_mamba(w: Writer, time_step_rank: int, groups: int = 0) -> None:
    """Of Mamba-2, the number of heads is called the rank."""
    _set_ssm(w, INNER, STATE, time_step_rank, groups)


def mamba(b: Tensors) -> None:
    b.normal("ssm_in.weight", EMBD, 2 * INNER)
    _convolution(b, INNER)
    b.normal("ssm_x.weight", INNER, TIME_STEP_RANK + 2 * STATE)
    b.normal("ssm_dt.weight", TIME_STEP_RANK, INNER, gain=0.5)
    b.uniform("ssm_dt.bias", *_TIME_STEPS, INNER)
    b.values("ssm_a", -np.tile(np.arange(1.0, STATE + 1), (INNER, 1)))
    b.zeros("ssm_d", INNER)  # all of the output is from the state
    b.normal("ssm_out.weight", INNER, EMBD, gain=4.0)


def mamba2(b: Tensors) -> None:
    channels = INNER + 2 * GROUPS * STATE
    b.normal("ssm_in.weight", EMBD, INNER + channels + SSM_HEADS)
    _convolution(b, channels)
    b.uniform("ssm_dt.bias", *_TIME_STEPS, SSM_HEADS)
    b.uniform("ssm_a", -2.0, -0.5, 1, SSM_HEADS)
    b.zeros("ssm_d", 1, SSM_HEADS)
    b.ones("ssm_norm.weight", INNER // GROUPS, GROUPS)
    b.normal("ssm_out.weight", INNER, EMBD)


def set_delta_net(w: Writer) -> None:
    _set_ssm(w, DELTA_HEADS * DELTA_HEAD, DELTA_HEAD, DELTA_HEADS, DELTA_KEY_HEADS)


def delta_net(b: Tensors) -> None:
    values = DELTA_HEADS * DELTA_HEAD
    channels = values + 2 * DELTA_KEY_HEADS * DELTA_HEAD
    b.normal("attn_qkv.weight", EMBD, channels)
    b.normal("attn_gate.weight", EMBD, values)
    b.normal("ssm_conv1d.weight", CONV, channels)
    b.uniform("ssm_dt.bias", *_TIME_STEPS, DELTA_HEADS)
    b.uniform("ssm_a", -1.0, -0.25, DELTA_HEADS)
    b.normal("ssm_beta.weight", EMBD, DELTA_HEADS)
    b.normal("ssm_alpha.weight", EMBD, DELTA_HEADS, gain=0.5)
    b.ones("ssm_norm.weight", DELTA_HEAD)
    b.normal("ssm_out.weight", values, EMBD)


def _set_ssm(w: Writer, inner: int, state: int, time_step_rank: int, groups: int) -> None:
    w.set(
        {
            "ssm.conv_kernel": CONV,
            "ssm.inner_size": inner,
            "ssm.state_size": state,
            "ssm.time_step_rank": time_step_rank,
            "ssm.group_count": groups,
        }
    )


def _convolution(b: Tensors, channels: int) -> None:
    b.normal("ssm_conv1d.weight", CONV, channels)
    b.zeros("ssm_conv1d.bias", channels)
