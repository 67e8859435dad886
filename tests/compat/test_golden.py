"""Stores that older versions wrote still open and give their bytes. ``make_golden.py`` writes such a file."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtier import Config, Hit, Store
from tests.compat.make_golden import BLOCKS, LONG, Block, configuration, make, noise
from tests.concurrency.processes import running

HERE = Path(__file__).parent
GOLDEN = sorted(HERE.glob("store-v*.zip"))


@pytest.fixture(params=GOLDEN, ids=lambda p: p.stem)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path / "store")
    return configuration(tmp_path / "store")


@pytest.fixture
def blocks(request: pytest.FixtureRequest, golden: Config) -> list[Block]:
    """What it holds."""
    return BLOCKS if "v1" in request.node.callspec.id else [*BLOCKS, LONG]


def check(store: Store, blocks: Sequence[Block]) -> None:
    for b in blocks:
        hit = store.get(b.key, namespace=b.namespace)
        assert isinstance(hit, Hit), b.key
        assert ([bytes(x) for x in hit.buffers], hit.meta) == (b.buffers, b.meta)
    assert not store.contains(b"dead")
    assert store.stats().blocks == len(blocks)


def test_there_is_one_of_each_format() -> None:
    assert [p.name for p in GOLDEN] == ["store-v1.zip", "store-v3.zip"]


def test_it_opens_and_gives_its_bytes(golden: Config, blocks: list[Block]) -> None:
    with Store.open(golden, read_only=True) as store:
        check(store, blocks)
    with Store.open(golden) as store:
        check(store, blocks)
        assert store.stats().bytes_written == 0


def test_it_is_of_the_new_format_once_it_was_opened_for_writing(golden: Config, blocks: list[Block]) -> None:
    """Before anything is written that an older version would misread."""
    assert golden.store.path is not None
    file = golden.store.path / "STORE"
    before = json.loads(file.read_text())["format"]
    with Store.open(golden, read_only=True):
        assert json.loads(file.read_text())["format"] == before == (3 if LONG in blocks else 1)
    with Store.open(golden, background=False):
        assert json.loads(file.read_text())["format"] == 3
    with Store.open(golden) as store:
        check(store, blocks)


def test_it_opens_by_its_folder_alone(golden: Config, blocks: list[Block]) -> None:
    assert golden.store.path is not None
    with Store.open(golden.store.path) as store:
        check(store, blocks)
        assert [t.name for t in store.stats().tiers] == ["first", "second"]


def test_its_index_can_be_made_anew(golden: Config, blocks: list[Block]) -> None:
    assert golden.store.path is not None
    shutil.rmtree(golden.store.path / "index")
    with Store.open(golden) as store:
        check(store, blocks)
        assert store.stats().bytes_written == 0


def test_it_knows_what_it_has_and_can_be_written(golden: Config, blocks: list[Block]) -> None:
    with Store.open(golden, background=False) as store:
        for b in blocks:  # block and content ids come out as they did then
            store.put(b.key, b.buffers, meta=b.meta, parent=b.parent, namespace=b.namespace)
        store.flush()
        assert store.stats().bytes_written == 0
        store.put(b"twin again", noise("root", 700), namespace=b"tenant")
        store.flush()
        assert store.stats().dedup.blocks == 1
        store.delete(b"twin again", namespace=b"tenant")
        store.flush()
        check(store, blocks)


READER = """
import sys
from pathlib import Path
from kvtier import Hit, Store
from tests.compat.make_golden import BLOCKS, LONG, configuration
with Store.open(configuration(Path(sys.argv[1])), read_only=True) as store:
    for line in sys.stdin:
        for b in (*BLOCKS, LONG):
            store._front.forget(store._wanted(b.key, b.namespace).block_id)
        print(sum(isinstance(store.get(b.key, namespace=b.namespace), Hit) for b in (*BLOCKS, LONG)), flush=True)
"""


def test_a_reader_reads_on_while_its_index_is_made_anew(golden: Config, blocks: list[Block]) -> None:
    everything = str(len(blocks))
    with running(READER, golden.store.path) as reader:
        assert reader.ask("look") == everything
        with Store.open(golden) as store:
            check(store, blocks)
            assert reader.ask("look") == everything  # in the same file, but not the same form
            store.put(b"more", b"x")
        assert reader.ask("look") == everything


def test_the_script_makes_the_same_contents(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with Store.open(configuration(tmp_path / "store")) as store:
        check(store, [*BLOCKS, LONG])
