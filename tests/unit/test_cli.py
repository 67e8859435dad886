"""The command line: exit codes, what goes to which stream, and commands from other packages."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

import kvtier.cli.app
import kvtier.config
from kvtier import Store
from kvtier.cli.app import run
from kvtier.units import GIB, MIB

Capture = pytest.CaptureFixture[str]

GOOD = """
[store]
path = "store"
value_bytes_max = "1MiB"
[write_behind]
bytes_max = "4MiB"
[[tier]]
name = "nvme"
kind = "ssd"
segment_bytes = "4MiB"
bytes_max = "64MiB"
[[tier]]
name = "cold"
kind = "hdd"
segment_bytes = "4MiB"
bytes_max = "50%"
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.toml"
    file.write_text(GOOD, encoding="utf-8")
    return file


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.toml"
    file.write_text("[ram]\nbyte_max = 1\n[prefetch]\nthreads = 0\n", encoding="utf-8")
    return file


def only_stderr(capsys: Capture) -> list[str]:
    """The lines on stderr, after checking that they look like ours and that stdout is empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = err.splitlines()
    assert lines
    assert all(line.startswith("kvtier: ") for line in lines)
    return lines


def in_a_process(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvtier.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def store_keys(source: Path) -> set[str]:
    with Store.open(source, read_only=True) as store:
        return set(store.stats().as_dict())


def test_a_right_configuration_is_shown_with_its_caps(good: Path, capsys: Capture) -> None:
    assert run(["config", "check", str(good)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{good}: ok" in out
    assert str(good.parent / "store" / "nvme") in out
    assert "64MiB" in out


def test_a_right_configuration_as_json(good: Path, capsys: Capture) -> None:
    assert run(["config", "check", str(good), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    nvme, cold = answer["config"]["tier"]
    assert (answer["ok"], answer["problems"]) == (True, [])
    assert (nvme["bytes_max"], nvme["share_of_disk"]) == (64 * MIB, None)
    assert isinstance(cold["bytes_max"], int)
    assert cold["share_of_disk"] == "50%"
    assert 0 < nvme["free_bytes_min"] <= GIB
    ram = answer["config"]["ram"]
    assert ram["bytes_max"] > 0
    assert 0 < ram["available_bytes_min"] <= 512 * MIB


def test_a_wrong_configuration_says_everything_that_is_wrong(bad: Path, capsys: Capture) -> None:
    assert run(["config", "check", str(bad)]) == 1
    first, *rest = only_stderr(capsys)
    assert f"{bad}: 2 problems" in first
    assert [line.split(": ")[1].strip() for line in rest] == ["ram.byte_max", "prefetch.threads"]


def test_a_wrong_configuration_as_json(bad: Path, capsys: Capture) -> None:
    assert run(["config", "check", str(bad), "--json"]) == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert err == ""
    assert answer["ok"] is False
    assert [p["path"] for p in answer["problems"]] == ["ram.byte_max", "prefetch.threads"]
    assert "bytes_max" in answer["problems"][0]["hint"]


def test_a_configuration_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    assert run(["config", "check", str(tmp_path / "none.toml")]) == 1
    assert any("cannot be read" in line for line in only_stderr(capsys))


def test_the_schema_is_the_shipped_one(capsys: Capture) -> None:
    assert run(["config", "schema"]) == 0
    assert capsys.readouterr().out == kvtier.config.json_schema()


def test_stat_of_a_store_by_its_file(good: Path, capsys: Capture) -> None:
    with Store.open(good) as store:
        store.put(b"key", b"x" * 1000)
    assert run(["stat", str(good), "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == store_keys(good)
    assert run(["stat", str(good)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "nvme" in out


def test_stat_beside_a_writer(good: Path) -> None:
    with Store.open(good) as store:
        store.put(b"key", b"x" * 1000)
        store.flush()
        done = in_a_process("stat", str(good), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout).keys() == store_keys(good)


def test_stat_of_nothing_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert run(["stat", str(tmp_path / "none")]) == 1
    assert len(only_stderr(capsys)) == 1
    assert not (tmp_path / "none").exists()


def test_stat_of_a_wrong_file_names_its_problems(bad: Path, capsys: Capture) -> None:
    assert run(["stat", str(bad)]) == 1
    assert ["ram.byte_max" in line for line in only_stderr(capsys)] == [True, False]


@pytest.mark.parametrize("argv", [[], ["stat"], ["nonsense"], ["config"], ["config", "check"], ["stat", "--odd", "x"]])
def test_wrong_usage_is_2(argv: list[str]) -> None:
    assert run(argv) == 2


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"kvtier {kvtier.__version__}\n"


def plug_in(monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> ModuleType:
    """Make ``kvtier NAME`` a command of another package, whose module runs ``source`` when it is imported."""
    module = ModuleType(f"plugged_{name}")

    class Entry(EntryPoint):
        def load(self) -> object:
            exec(source, module.__dict__)
            return module.__dict__["command"]

    entry = Entry(name, f"plugged_{name}:command", kvtier.cli.app.COMMANDS_GROUP)
    monkeypatch.setattr(kvtier.cli.app, "entry_points", lambda group: [entry])
    return module


def test_a_command_of_another_package(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    plug_in(monkeypatch, "shout", "def command(word: str, times: int = 1):\n    print(word.upper() * times)")
    assert run(["shout", "hey", "--times", "2"]) == 0
    assert capsys.readouterr().out == "HEYHEY\n"


def test_a_command_of_another_package_is_listed_and_not_loaded_for_others(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    module = plug_in(monkeypatch, "shout", "def command():\n    'Says it loud.'")
    run(["config", "schema"])
    assert "command" not in module.__dict__
    capsys.readouterr()
    assert run(["--help"]) == 0
    assert "Says it loud." in capsys.readouterr().out


@pytest.mark.parametrize("source", ["import llama_cpp_not_here as x", "def command():\n    import llama_cpp_not_here"])
def test_a_command_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Capture, source: str) -> None:
    monkeypatch.setitem(kvtier.cli.app._EXTRA_OF, "llama_cpp_not_here", "llama-cpp")
    plug_in(monkeypatch, "demo", source)
    assert run(["demo"]) == 1
    (line,) = only_stderr(capsys)
    assert "needs the package llama_cpp_not_here" in line
    assert "pip install 'kvtier[llama-cpp]'" in line
    assert run(["--help"]) == 0


def test_a_command_that_cannot_be_loaded_leaves_the_others(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    plug_in(monkeypatch, "broken", "raise OSError('no libgomp')")
    assert run(["--help"]) == 0
    capsys.readouterr()
    assert run(["broken"]) == 1
    (line,) = only_stderr(capsys)
    assert "cannot load plugged_broken:command: no libgomp" in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("FileNotFoundError(2, 'No such file or directory', '/x')", "/x: No such file or directory"),
        ("kvtier.StoreLocked('in use by\\nprocess 7')", "in use by process 7"),
        ("RuntimeError('odd')", "unexpected RuntimeError: odd"),
    ],
)
def test_every_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: str, says: str) -> None:
    plug_in(monkeypatch, "fails", f"import kvtier\ndef command():\n    raise {error}")
    assert run(["fails"]) == 1
    (line,) = only_stderr(capsys)
    assert says in line


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, "fails", "def command():\n    raise RuntimeError('odd')")
    monkeypatch.setenv("KVTIER_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="odd"):
        run(["fails"])


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; import kvtier.cli; kvtier.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "kvtier: the command line needs the package typer: pip install 'kvtier[cli]'\n"


def test_as_a_process(bad: Path) -> None:
    done = in_a_process("config", "check", str(bad))
    assert done.returncode == 1
    assert "ram.byte_max" in done.stderr
