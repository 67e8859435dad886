"""That what was parsed of a blob of llama.cpp state lies inside of it."""

from __future__ import annotations

from kvtier_adapters.llama_cpp.state import Layout, parse
from tests.fuzz.parsers.target import Failed


def in_bounds(blob: memoryview, layout: Layout) -> None:
    """Raises :class:`Failed`, or ``StateLayoutError`` if it cannot be parsed."""
    for section in parse(blob, layout):
        if not 0 <= section.start <= section.data <= section.end <= blob.nbytes:
            raise Failed(f"section {section.start}, {section.data}, {section.end} of {blob.nbytes} bytes")
        for tensor in section.tensors:
            if not section.data <= tensor.data <= tensor.data + tensor.runs * tensor.cell_bytes * section.cells:
                raise Failed(f"{tensor} begins before the data at {section.data}")
            if tensor.data + tensor.runs * tensor.cell_bytes * section.cells > section.end:
                raise Failed(f"{tensor} of {section.cells} cells goes beyond {section.end}")
