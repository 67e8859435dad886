"""The one error that the demo raises on purpose."""

from kvtier import KvtierError


class DemoError(KvtierError):
    """The demo cannot run, and its message says what to do about it."""
