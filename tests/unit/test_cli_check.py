"""``kvtier verify``, ``kvtier repair`` and ``kvtier rebuild-index``: exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier import Store, single_key
from kvtier.cli.app import run
from kvtier.segment.format import SEGMENT_HEADER_BYTES
from tests.stores import KIB, config, fill, flip, names, segments

Capture = pytest.CaptureFixture[str]
COMMANDS = ["verify", "repair", "rebuild-index"]
KEYS = names(3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a store of three blocks."""
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, KEYS, 20 * KIB)
    return tmp_path / "store"


def spoil(root: Path) -> None:
    flip(segments(root.parent)[0], SEGMENT_HEADER_BYTES + 5000)


def only_stderr(capsys: Capture) -> str:
    """The one line on stderr, after checking that stdout is empty."""
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("kvtier: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_sound_store_is_0(root: Path, capsys: Capture, command: str) -> None:
    assert run([command, str(root)]) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""


def test_damage_is_1_until_it_is_repaired(root: Path, capsys: Capture) -> None:
    spoil(root)
    assert run(["verify", str(root)]) == 1
    out, err = capsys.readouterr()
    assert "payload, tier disk, segment 1, offset 64: payload checksum differs" in out
    assert err == ""
    assert run(["verify", str(root), "--no-payloads"]) == 0
    assert run(["repair", str(root)]) == 0
    assert run(["verify", str(root)]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_as_json(root: Path, capsys: Capture) -> None:
    spoil(root)
    assert run(["verify", str(root), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["sound"], found["blocks"], found["damage"]) == (False, 3, {"payload": 1})
    assert found["findings"] == [
        {"kind": "payload", "what": "payload checksum differs", "tier": "disk", "segment": 1, "offset": 64}
    ]
    assert run(["repair", str(root), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["found"]["damage"], done["left"]["damage"]) == ({"payload": 1}, {})
    assert (done["payloads_taken_out"], done["left"]["blocks"]) == (1, 2)
    assert run(["rebuild-index", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"records": 2, "torn_bytes": 0, "damaged": 0, "rebuilt": True}


def test_what_cannot_be_read_makes_a_new_index_less_than_whole(root: Path, capsys: Capture) -> None:
    file = segments(root.parent)[0]
    flip(file, SEGMENT_HEADER_BYTES)
    assert run(["rebuild-index", str(root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["damaged"] == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_2(tmp_path: Path, capsys: Capture, command: str) -> None:
    assert run([command, str(tmp_path)]) == 2
    assert "no store here" in only_stderr(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_configuration_is_2(tmp_path: Path, capsys: Capture, command: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[ram]\nbyte_max = 1\n", encoding="utf-8")
    assert run([command, str(file)]) == 2
    assert "ram.byte_max" in only_stderr(capsys)


@pytest.mark.parametrize(("command", "code"), [("verify", 0), ("repair", 2), ("rebuild-index", 2)])
def test_beside_a_writer(root: Path, command: str, code: int) -> None:
    with Store.open(root):
        argv = [sys.executable, "-m", "kvtier.cli", command, str(root)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert ("open for writing" in done.stderr) == bool(code)


REBUILD = """
import sys
from kvtier.check import rebuild_index

def wait(event):
    print("busy", flush=True)
    sys.stdin.readline()

rebuild_index(sys.argv[1], listeners=[wait])
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_index_that_is_being_made_anew_cannot_be_judged(root: Path, capsys: Capture, is_killed: bool) -> None:
    argv = [sys.executable, "-c", REBUILD, str(root)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        code, said = run(["verify", str(root)]), only_stderr(capsys)
        if is_killed:
            process.kill()
        process.communicate()
    assert code == 2
    assert "being made anew" in said
    assert run(["verify", str(root)]) == (2 if is_killed else 0)
    assert run(["rebuild-index", str(root)]) == 0
    assert run(["verify", str(root)]) == 0


PROVIDER = "from kvtier import single_key\nkeys = single_key(bytes(32))\n"


def test_an_encrypted_store(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    with Store.open(config(tmp_path), keys=single_key(bytes(32)), background=False) as store:
        fill(store, KEYS, 20 * KIB)
    root = str(tmp_path / "store")
    (tmp_path / "my_keys_for_this_test.py").write_text(PROVIDER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spoil(tmp_path / "store")
    assert run(["verify", root]) == 1
    capsys.readouterr()
    for command in ("repair", "rebuild-index"):
        assert run([command, root]) == 2
        assert "--keys MODULE:NAME" in only_stderr(capsys)
        assert run([command, root, "--keys", "my_keys_for_this_test:absent"]) == 2
        assert "absent" in only_stderr(capsys)
        assert run([command, root, "--keys", "my_keys_for_this_test:keys"]) == 0
        capsys.readouterr()
    assert run(["verify", root]) == 0


def test_a_lost_index_is_said_and_made_anew(root: Path, capsys: Capture) -> None:
    shutil.rmtree(root / "index")
    assert run(["verify", str(root)]) == 1
    assert "index: there is none" in capsys.readouterr().out
    assert run(["rebuild-index", str(root)]) == 0
    assert run(["verify", str(root)]) == 0
