"""The configuration as a store saves it: ``Config.of_store``."""

from __future__ import annotations

from kvtier.config import SAVED_FILE, Config
from kvtier.errors import ConfigError
from tests.fuzz.parsers.scratch import new_folder
from tests.fuzz.parsers.target import Target, expect_same

_scratch = new_folder()
_file = _scratch / SAVED_FILE


def parse(data: bytes) -> None:
    _file.write_bytes(data)
    config = Config.of_store(_scratch)
    _file.write_text(config.to_json(), encoding="utf-8")
    expect_same(lambda: Config.of_store(_scratch), config)


WORDS = [
    *(f'"{key}": '.encode() for key in ("store", "path", "tier", "bytes_max", "kind", "name", "ram", "eviction")),
    *(b'"10%"', b'"0.00001%"', b'"ssd"', b'"zstd"', b"null", b"true", b"1e999", b"NaN", b'"\\ud800"', b'"\\udc80"'),
    *(b'"~x"', b'"/"', b'".."', b'"\\u0000"', b'""', b"[" * 700, b'{"a": ' * 700, b"9" * 30, b"1" * 4400, b"{}", b"[]"),
    *(b'{"name": "x", "kind": "ssd", "bytes_max": "1GiB"}', b", ", b'"a": 1'),
]

TARGET = Target(parse, (ConfigError,), words=WORDS, spare=1 << 19)  # tracebacks as deep as can be
