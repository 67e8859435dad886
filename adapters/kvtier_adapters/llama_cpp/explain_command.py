"""``kvtier explain``: how much of a prompt a store could restore for a model, without loading its weights."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from llama_cpp import Llama

from kvtier import Store
from kvtier_adapters.llama_cpp.binding import as_tokens
from kvtier_adapters.llama_cpp.explain import PromptExplanation, explain
from kvtier_adapters.llama_cpp.fingerprint import Fingerprint, catalogue, model_id
from kvtier_adapters.llama_cpp.held import Tokens
from kvtier_adapters.llama_cpp.lookup import Lookup
from kvtier_adapters.llama_cpp.memory import kinds


def command(
    store: Annotated[Path, typer.Argument(help="A store's folder, or its TOML file.", metavar="FOLDER|CONFIG")],
    model: Annotated[Path, typer.Option(metavar="FILE.gguf", help="The model that the prompt is for.")],
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The prompt, as it is given to the model.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the prompt. Default: standard input.")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="The prompt is a JSON list of token ids, not text.")] = False,
    namespace: Annotated[str, typer.Option(metavar="NAME", help="The namespace that it was stored in.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """How much of a prompt could be restored, from which tier, and why not the rest.

    One answer for each setting (KV types, context, LoRA, ...) that the model was used with. The store is opened for
    reading only. Exit code 0 if anything can be restored, else 1.
    """
    text = prompt if prompt is not None else file.read_text(encoding="utf-8") if file else sys.stdin.read()
    with Store.open(store, read_only=True) as opened:
        wanted = _tokens(model, text, tokens)
        identity = model_id(model, opened)
        known = catalogue(opened)
        settings = [fingerprint for fingerprint in known if fingerprint.model == identity]
        answers = [(it, _explain(opened, namespace.encode(), it, known, wanted)) for it in settings]
    best_first = sorted(answers, key=lambda answer: -answer[1].restorable)
    if json:
        report = {"tokens": len(wanted), "model": identity, "settings": [_entry(*answer) for answer in best_first]}
        sys.stdout.write(json_module.dumps(report, indent=2) + "\n")
    else:
        _print(best_first)
    if not any(answer.restorable for _, answer in answers):
        raise typer.Exit(1)


def _tokens(model: Path, text: str, as_ids: bool) -> Tokens:
    if as_ids:
        ids = json_module.loads(text)
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise typer.BadParameter("the prompt is not a JSON list of token ids")
        return as_tokens(ids)
    llm = Llama(str(model), vocab_only=True, verbose=False)
    try:
        add_bos = llm.metadata.get("tokenizer.ggml.add_bos_token", "true") == "true"
        return as_tokens(llm.tokenize(text.encode(), add_bos=add_bos, special=True))
    finally:
        llm.close()


def _explain(
    store: Store, namespace: bytes, setting: Fingerprint, known: list[Fingerprint], tokens: Tokens
) -> PromptExplanation:
    rows, window, snapshots = kinds(setting.memory)
    n_swa = setting.n_swa if window else 0
    lookup = Lookup(store, namespace, setting, rows=rows, n_swa=n_swa, snapshots=snapshots)
    return explain(lookup, tokens, [other for other in known if other != setting])


def _entry(setting: Fingerprint, answer: PromptExplanation) -> dict[str, Any]:
    return {"fingerprint": json_module.loads(setting.to_json()), **answer.as_dict()}


def _print(answers: list[tuple[Fingerprint, PromptExplanation]]) -> None:
    if not answers:
        sys.stdout.write("The store holds nothing of this model.\n")
    for setting, answer in answers:
        differs = setting.difference(answers[0][0])
        sys.stdout.write(f"{answer}\n" if not differs else f"With {differs}: {answer}\n")
