"""What it costs to compute KV: seconds, from a model's sizes or as measured.

The token at position ``p`` costs ``seconds_per_token + p * seconds_per_position``: matrix products with the weights,
and attention to all tokens before it.
"""

from __future__ import annotations

from dataclasses import dataclass

_BYTES_A_NUMBER = 2  # f16
#: Operations a second that a model's sizes are turned into seconds with; ratios do not depend on it.
FLOPS_DEFAULT = 1e14


@dataclass(frozen=True)
class CostModel:
    """See the module."""

    name: str
    seconds_per_token: float
    seconds_per_position: float
    kv_bytes_per_token: int

    def seconds(self, start: int, end: int) -> float:
        """To compute the tokens from ``start`` up to ``end``, all before ``start`` being there."""
        positions = (end * (end - 1) - start * (start - 1)) / 2
        return self.seconds_per_token * (end - start) + self.seconds_per_position * positions


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a transformer, named as in its published configuration."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    window_layers: int = 0  #: of the layers, those that attend to a sliding window
    window: int = 0  #: of so many tokens

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V of all layers, in f16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _BYTES_A_NUMBER

    def cost(self, name: str, flops: float = FLOPS_DEFAULT) -> CostModel:
        """Two operations a weight; four a head's dimension and token attended to (scores, and their sum of values).
        A window counts as full from the first token on."""
        width = self.heads * self.head_dim
        attention_weights = 2 * self.d_model * width + 2 * self.d_model * self.kv_heads * self.head_dim
        weights = self.layers * (attention_weights + 3 * self.d_model * self.d_ff)
        windowed = 4 * width * self.window_layers * self.window
        per_position = 4 * width * (self.layers - self.window_layers)
        return CostModel(name, (2 * weights + windowed) / flops, per_position / flops, self.kv_bytes_per_token)


PRESETS = {
    "smollm2-135m": ModelSizes(layers=30, d_model=576, heads=9, kv_heads=3, head_dim=64, d_ff=1536),
    "gemma-3-270m": ModelSizes(
        layers=18, d_model=640, heads=4, kv_heads=1, head_dim=256, d_ff=2048, window_layers=15, window=512
    ),
    "llama-3-8b": ModelSizes(layers=32, d_model=4096, heads=32, kv_heads=8, head_dim=128, d_ff=14336),
}
DEFAULT_MODEL = "llama-3-8b"
