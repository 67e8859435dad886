"""``python -m kvtier_adapters.llama_cpp.server``: the real server, a real model, real HTTP, real signals."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvtier import Store, key_file
from kvtier.events import Event, Recovered
from tests import models
from tests.adapters import engine
from tests.adapters.served import COMMAND, SETTINGS, Served, environment, is_durable, running, served

if TYPE_CHECKING:
    from llama_cpp import Llama

pytest.importorskip("llama_cpp")
pytest.importorskip("fastapi", reason="the extra server is not installed")

from llama_cpp.server.settings import ModelSettings

from kvtier_adapters.llama_cpp import Options
from kvtier_adapters.llama_cpp.server.__main__ import main
from kvtier_adapters.llama_cpp.server.arguments import parse
from kvtier_adapters.llama_cpp.server.models import Models

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]

ANSWER = 16
ROW_BYTES = engine.ROW_BYTES["smollm2"]
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
RUNNING_FILE = "RUNNING"  # docs/format.md: there while a process writes, gone after a clean close


def words(start: int, count: int) -> str:
    """Real text, from word ``start`` of it on."""
    return " ".join((models.ROOT / "LICENSE").read_text().split()[start : start + count])


@dataclass
class Turn:
    """One answer and what it cost. A streamed answer does not say how many tokens it has: see ``usage``."""

    text: str
    usage: dict[str, int] = field(default_factory=dict)


class Chat:
    """A conversation about a part of the licence."""

    def __init__(self, start: int) -> None:
        self._messages = [
            {"role": "system", "content": words(start, 100)},
            {"role": "user", "content": "Explain this text."},
        ]

    def request(self, said: str = "", max_tokens: int = ANSWER) -> dict[str, Any]:
        """The first question, or the second one, after ``said`` was the answer to the first."""
        more = [
            {"role": "assistant", "content": said},
            {"role": "user", "content": "Explain every part of it."},
        ]
        return {"messages": [*self._messages, *(more if said else [])], "max_tokens": max_tokens, "temperature": 0}


CHATS = {"plain": Chat(0), "streamed": Chat(500), "cut short": Chat(1000)}


def whole(server: Served, request: dict[str, Any]) -> Turn:
    answer = server.json(CHAT, request)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    return Turn(choice["message"]["content"], answer["usage"])


def streamed(server: Served, request: dict[str, Any]) -> Turn:
    choices = [event["choices"][0] for event in server.events(CHAT, request)]
    assert choices[-1]["finish_reason"] == "length"
    return Turn("".join(choice["delta"].get("content", "") for choice in choices))


ASK: dict[str, Callable[[Served, dict[str, Any]], Turn]] = {"plain": whole, "streamed": streamed}


@dataclass
class Undisturbed:
    """A server that nothing happens to, and what it answered."""

    server: Served
    store: Path
    turns: dict[str, list[Turn]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    with served(store) as server:
        turns: dict[str, list[Turn]] = {}
        for name, chat in CHATS.items():
            first = whole(server, chat.request())
            turns[name] = [first, whole(server, chat.request(first.text))]
        yield Undisturbed(server, store, turns)


@pytest.fixture(scope="module")
def restarted(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on the store of one that was killed: after two first answers, in the middle of a third one."""
    store = tmp_path_factory.mktemp("killed") / "store"
    with served(store) as server:
        for name, ask in ASK.items():
            assert ask(server, CHATS[name].request()).text == undisturbed.turns[name][0].text
        unfinished = server.events(CHAT, CHATS["cut short"].request(max_tokens=500))
        seen = [next(unfinished), next(unfinished), next(unfinished)]
        first_turns = [turns[0].usage for turns in undisturbed.turns.values()]
        rows = sum(usage["prompt_tokens"] for usage in first_turns) + 2 * (ANSWER - 1)
        server.wait_until(lambda stats: is_durable(stats, (rows - len(CHATS) * 3) * ROW_BYTES))
        server.kill()
        with contextlib.suppress(OSError, http.client.HTTPException):
            seen.extend(unfinished)
        assert all(event["choices"][0]["finish_reason"] is None for event in seen)
    assert server.process.returncode == -signal.SIGKILL
    assert (store / RUNNING_FILE).exists()
    with served(store) as server:
        yield server


def spent(server: Served, before: dict[str, Any]) -> dict[str, int]:
    """What the server counted since ``before``."""
    now, then = server.stats()["session"], before["session"]
    assert now["errors"] == {}, now["last_error"]
    return {name: now[name] - then[name] for name in ("tokens_evaluated", "tokens_restored")}


@pytest.mark.parametrize("name", list(ASK))
def test_a_conversation_goes_on_after_a_kill(name: str, undisturbed: Undisturbed, restarted: Served) -> None:
    first, second = undisturbed.turns[name]
    before = restarted.stats()
    assert ASK[name](restarted, CHATS[name].request(first.text)).text == second.text
    cost = spent(restarted, before)
    stored = first.usage["total_tokens"] - 1  # the last token of an answer is never evaluated
    assert cost["tokens_evaluated"] == second.usage["prompt_tokens"] - stored + ANSWER - 1
    assert 0 < cost["tokens_restored"] <= stored


def test_the_prompt_of_an_answer_that_was_killed_is_there(undisturbed: Undisturbed, restarted: Served) -> None:
    expected = undisturbed.turns["cut short"][0]
    before = restarted.stats()
    assert whole(restarted, CHATS["cut short"].request()).text == expected.text
    cost = spent(restarted, before)
    assert cost["tokens_evaluated"] == ANSWER  # the last of the prompt, and all of the answer but its last
    assert 0 < cost["tokens_restored"] < expected.usage["prompt_tokens"]


# -- several clients -----------------------------------------------------------------------------------------


@dataclass
class Script:
    """A conversation without a template: each prompt begins with another token, so that no two share a prefix."""

    prompt: str
    answer: str
    second_prompt: str
    second_answer: str


def completed(server: Served, prompt: str) -> str:
    answer: str = server.json(COMPLETE, completion(prompt))["choices"][0]["text"]
    return answer


def completed_in_a_stream(server: Served, prompt: str) -> str:
    return "".join(event["choices"][0]["text"] for event in server.events(COMPLETE, completion(prompt)))


def completion(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": ANSWER, "temperature": 0}


@pytest.fixture(scope="module")
def scripts(undisturbed: Undisturbed) -> list[Script]:
    found = []
    for number, word in enumerate(["Alpha", "Beta", "Gamma", "Delta"]):
        prompt = f"{word}: {words(number * 100, 40)}"
        answer = completed(undisturbed.server, prompt)
        second = f"{prompt}{answer}\n\nIn short, you may"
        found.append(Script(prompt, answer, second, completed(undisturbed.server, second)))
    return found


def test_each_of_several_clients_gets_its_own_answers(scripts: list[Script], tmp_path: Path) -> None:
    def client(number: int) -> None:
        """Two conversations by turns, each shared with another client; every other client streams."""
        ask = completed_in_a_stream if number % 2 else completed
        mine = [scripts[number], scripts[(number + 1) % len(scripts)]]
        for script in mine:
            assert ask(server, script.prompt) == script.answer
        for script in mine:
            assert ask(server, script.second_prompt) == script.second_answer

    with served(tmp_path / "store", "--interrupt_requests", "false") as server:
        with ThreadPoolExecutor(len(scripts)) as clients:
            list(clients.map(client, range(len(scripts))))
        session = server.stats()["session"]
        assert session["errors"] == {}, session["last_error"]
        assert session["prompts"] == 4 * len(scripts)
        assert session["cold_starts"] == len(scripts), "each prompt is evaluated from zero once"


def test_an_interrupted_stream_disturbs_no_other_answer(scripts: list[Script], restarted: Served) -> None:
    """By default the server ends a stream when another request waits."""
    server = restarted

    def client(number: int) -> None:
        for script in scripts:
            if number % 2:
                assert script.answer.startswith(completed_in_a_stream(server, script.prompt))
            else:
                assert completed(server, script.prompt) == script.answer

    before = server.stats()["session"]
    with ThreadPoolExecutor(len(scripts)) as clients:
        list(clients.map(client, range(len(scripts))))
    session = server.stats()["session"]
    assert session["errors"] == {}, session["last_error"]
    assert session["cold_starts"] - before["cold_starts"] == len(scripts)


# -- stopping ------------------------------------------------------------------------------------------------


def test_sigterm_in_an_answer_writes_what_is_queued_and_closes_the_store(tmp_path: Path) -> None:
    with served(tmp_path / "store") as server:
        unfinished = server.events(CHAT, CHATS["plain"].request(max_tokens=500))
        next(unfinished)
        stats = server.wait_until(lambda stats: stats["session"]["pieces_captured"] > 0)
        assert server.stop() == 0
        unfinished.close()
    assert not (tmp_path / "store" / RUNNING_FILE).exists()
    events: list[Event] = []
    with Store.open(tmp_path / "store", listeners=[events.append]) as store:
        assert store.stats().blocks >= stats["store"]["puts"]
    assert not [event for event in events if isinstance(event, Recovered)]


# -- what is the server's stays the server's -----------------------------------------------------------------


def test_models_come_and_go_on_one_store_and_the_key_is_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "server.json"
    model = {**SETTINGS, "model": str(models.smollm2()), "model_alias": "one", "cache": True}
    other = {**model, "model_alias": "other", "n_batch": 128}
    refused = {**model, "model_alias": "refused", "logits_all": True}
    config.write_text(
        json.dumps({"host": "127.0.0.1", "port": 0, "api_key": "secret", "models": [model, other, refused]})
    )

    def ask(name: str) -> dict[str, Any]:
        body = {**CHATS["plain"].request(max_tokens=4), "model": name}
        tokens: int = server.json(CHAT, body, api_key="secret")["usage"]["prompt_tokens"]
        session = server.stats("secret")["session"]
        return {name: session[name] for name in ("tokens_restored", "refused", "errors")} | {"tokens": tokens}

    with running(
        Served("--config_file", str(config), KVTIER_STORE=str(tmp_path / "store"), KVTIER_REPRODUCIBLE="true")
    ) as server:
        for key in ("", "wrong"):
            with server.ask("/kvtier/stats", api_key=key) as response:
                assert response.status == 401
        assert server.stats("secret")["model"] == "one"
        tokens = ask("one")["tokens"]
        assert ask("other")["errors"] == {}
        assert ask("one")["tokens_restored"] == tokens - 1
        assert "logits_all" in ask("refused")["refused"]
        assert server.stats("secret")["model"] == "refused"
        assert server.stop() == 0
    assert server.said.count("kvtier: the store takes the place of the server's own cache") == 1
    assert server.said.count("kvtier: refused is served without the store: logits_all") == 1


def test_a_model_that_the_server_closes_is_captured_and_detached(store: Store) -> None:
    server_models = Models(lambda settings: engine.load(engine.SMOL), store, Options())
    llm = server_models.load(ModelSettings(model="model.gguf", model_alias="alias"))
    llm.eval(engine.prompt(llm, 20))
    puts = store.stats().puts
    llm.close()
    assert "_kvtier_attachment" not in vars(llm)
    assert store.stats().puts > puts
    report = server_models.report()
    assert (report["model"], report["session"]["tokens_evaluated"]) == ("alias", 20)


@pytest.mark.parametrize("asked", [False, True])
def test_logits_all_is_off_unless_asked_for(asked: bool, store: Store) -> None:
    def load(settings: ModelSettings) -> Llama:
        return engine.load(engine.SMOL, logits_all=settings.logits_all, n_ctx=64)

    settings = ModelSettings.model_validate({"model": "model.gguf"} | ({"logits_all": asked} if asked else {}))
    server_models = Models(load, store, Options())
    server_models.load(settings).close()
    assert bool(server_models.report()["session"]["refused"]) is asked


def test_a_multimodal_model_goes_without_the_store(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where a wrapper hides its handler."""
    settings = ModelSettings(model="eyes.gguf", clip_model_path="clip.gguf")
    with contextlib.closing(Models(lambda s: engine.load(engine.SMOL), store, Options()).load(settings)) as llm:
        assert "_kvtier_attachment" not in vars(llm)
    assert "kvtier: eyes.gguf is served without the store: multimodal chat handler" in capfd.readouterr().err


# -- what keeps it from starting -----------------------------------------------------------------------------


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refusal(*arguments)``: the one line that the command ends with."""

    def ended(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["server", *arguments])
        assert main() == 2
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        return line

    return ended


def test_a_folder_that_is_no_store(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear ...")
    assert refusal("--store", str(tmp_path)).startswith(f"kvtier: {tmp_path}")


def test_a_store_that_another_server_uses(refusal: Callable[..., str], undisturbed: Undisturbed) -> None:
    line = refusal("--store", str(undisturbed.store))
    assert line.startswith("kvtier: ")
    assert str(undisturbed.store) in line


def test_a_configuration_with_two_mistakes(
    refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kvtier.toml"
    file.write_text('[ram]\nbytes_max = "much"\n\n[[tier]]\nname = "disk"\nkind = "tape"\n')
    monkeypatch.setenv("KVTIER_STORE", str(file))
    line = refusal()
    assert "ram.bytes_max" in line
    assert "tier[0].kind" in line


def test_a_configuration_that_is_not_there(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "kvtier.toml") in refusal("--store", str(tmp_path / "kvtier.toml"))


def test_an_encrypted_store_needs_its_key_file(refusal: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    file = tmp_path / "key"
    file.write_text("0f" * 32 + "\n")
    file.chmod(0o600)
    Store.open(tmp_path / "store", keys=key_file(file)).close()
    assert "is encrypted" in refusal("--store", str(tmp_path / "store"))
    assert str(tmp_path / "none") in refusal("--store", str(tmp_path / "store"), "--key_file", str(tmp_path / "none"))
    file.write_text("0e" * 32)
    line = refusal("--store", str(tmp_path / "store"), "--key_file", str(file))
    assert "secret cannot be decrypted" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--store (or KVTIER_STORE) is needed"),
        (["--store", "s", "--kvtier_block_tokens", "0"], "block_tokens must be at least 1"),
        (["--store", "s", "--kvtier_namespace", "n" * 65], "namespace must be at most 64 bytes, got 65"),
        (["--store", "s", "--kvtier_reproducible", "perhaps"], "--kvtier_reproducible"),
    ],
)
def test_a_wrong_option(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVTIER_STORE", raising=False)
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_the_extra_is_not_installed() -> None:
    """The packages of the extra are hidden from the import system."""
    hide = "import runpy, sys; sys.modules['fastapi'] = None; sys.argv[0] = 'server'; "
    run = f"runpy.run_module({COMMAND[-1]!r}, run_name='__main__')"
    command = [sys.executable, "-c", hide + run, "--store", "store"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr == "kvtier: fastapi is not installed: pip install 'kvtier[server]'\n"


# -- options -------------------------------------------------------------------------------------------------


def test_ours_are_taken_and_the_rest_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTIER_STORE", "from-environment")
    monkeypatch.setenv("KVTIER_NAMESPACE", "from-environment")
    server = ["--model", "m.gguf", "--n_gpu_layers", "-1", "--kv_overrides", "a=b", "c=d", "--cach", "true"]
    arguments = parse([*server[:4], "--kvtier_namespace", "mine", "--kvtier_reproducible=true", *server[4:]])
    assert arguments.server == server
    assert arguments.store == "from-environment"
    assert arguments.options == Options(namespace=b"mine", reproducible=True)


def test_help_shows_both_kinds_of_options() -> None:
    done = subprocess.run(
        [*COMMAND, "--help"], env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    assert "--store FOLDER|FILE.toml" in done.stdout
    assert all(f"--kvtier_{option.name}" in done.stdout for option in fields(Options))
    assert "--config_file" in done.stdout
