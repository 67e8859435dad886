"""The stock server, run on a store."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence

import fastapi
import llama_cpp.server.__main__ as stock
from llama_cpp.server.app import authenticate, router
from llama_cpp.server.model import LlamaProxy

from kvtier import Store
from kvtier_adapters.llama_cpp.options import Options
from kvtier_adapters.llama_cpp.server.models import Models

STATS_PATH = "/kvtier/stats"


def serve(store: Store, options: Options, arguments: Sequence[str]) -> None:
    """Run the server with its own ``arguments`` until a signal stops it, then close the store.

    Call it once in a process: it changes how the server's modules load models. ``SystemExit`` where the
    server ends by itself, ``KeyboardInterrupt`` if it was stopped before it served.
    """
    models = Models(LlamaProxy.load_llama_from_model_settings, store, options)
    setattr(LlamaProxy, "load_llama_from_model_settings", staticmethod(models.load))  # noqa: B010
    router.add_api_route(
        STATS_PATH,
        models.report,
        summary="What was restored and stored, as counts",
        dependencies=[fastapi.Depends(authenticate)],
        tags=["kvtier"],
    )
    with store, _unwinding_on_sigterm():
        run_stock(arguments)


def run_stock(arguments: Sequence[str]) -> None:
    sys.argv[1:] = arguments
    stock.main()


@contextlib.contextmanager
def _unwinding_on_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C: uvicorn stops serving and then raises the signal anew, which would end the process."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
