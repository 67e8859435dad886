"""Adapters between inference engines and :class:`kvtier.Store`.

Each engine has a sub-package with an extra of its own (``kvtier[llama-cpp]``); importing this
package imports no engine. :mod:`kvtier_adapters.prefix` is what they share.
"""
