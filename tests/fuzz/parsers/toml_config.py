"""The configuration as a user writes it: ``Config.from_toml``."""

from __future__ import annotations

import json

from kvtier.config import Config, StoreConfig, TierConfig
from kvtier.errors import ConfigError
from tests.fuzz.parsers.scratch import new_folder
from tests.fuzz.parsers.target import Target, expect_same

_scratch = new_folder()
_file = _scratch / "kvtier.toml"


def parse(data: bytes) -> None:
    _file.write_bytes(data)
    config = Config.from_toml(_file)
    expect_same(lambda: Config.from_dict(json.loads(config.to_json())), config)


_KEYS = [*StoreConfig.model_fields, *TierConfig.model_fields, "threads", "when_full"]
_TEXTS = ["10%", "12.3456789%", "0.00001%", "50GiB", "zstd", "ssd", "hdd", "~", "~x", "/", "../x", "", "\\u0000"]
_LONG = '"' + "a/" * 3000 + '"'
_DIGITS = "0x" + "f" * 4000  # more than Python prints
_OTHERS = ["[[tier]]\n", 'path = "cache/~x"\n', _DIGITS, f"kind = {_DIGITS}\n", "1979-05-27", "9" * 30, "inf", "nan"]
_NESTED = ["[" * 600, "a." * 300 + "a = 1\n", "{}", "[[]]", "\n", "-1", _LONG]
WORDS = [
    *(f"{key} = ".encode() for key in _KEYS),
    *(f"[{section}]\n".encode() for section in Config.model_fields),
    *(f'"{text}"'.encode() for text in _TEXTS),
    *(text.encode() for text in [*_OTHERS, *_NESTED]),
]

TARGET = Target(parse, (ConfigError,), words=WORDS, spare=1 << 19)  # tracebacks as deep as can be
