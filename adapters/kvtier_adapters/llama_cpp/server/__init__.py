"""``python -m kvtier_adapters.llama_cpp.server``: llama-cpp-python's own server, with a store behind its models.

``arguments`` (our options; the rest is the server's) -> ``serving`` (the store, and the server on top of it) ->
``models`` (each model that the server loads, attached) and the endpoint that shows their counts.
"""
