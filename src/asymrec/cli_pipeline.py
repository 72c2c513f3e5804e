"""`asymrec pipeline`: retrieve, then rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from asymrec.cli_shared import Exclude, Histories, IncludeSeen, Only, Times, UserIds, asked_ids, asked_times, print_list, print_table
from asymrec.errors import ConfigError

pipeline = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Retrieval and a ranker behind it: fit, evaluate, recommend.")

Folder = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="Folder of a pipeline, made by `asymrec pipeline fit`.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@pipeline.command()
def fit(
    data: Annotated[
        Path | None, typer.Argument(metavar="DATA", help="Folder with interactions.*, items.* and perhaps users.*.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PIPELINE", help="Folder to write.", show_default=False)] = ...,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Retrieval: asymrec (default), or another of `asymrec fit`.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="Settings of retrieval as YAML, or a preset.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of retrieval.")] = None,
    ranker: Annotated[str | None, typer.Option(metavar="NAME", help="tokenformer (default), transformer, hstu, din, dcnv2, ...")] = None,
    ranker_settings: Annotated[list[str] | None, typer.Option("--rank-set", metavar="KEY=VALUE", help="A setting of the ranker.")] = None,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the ranker reads, as YAML; else as `rank schema` infers it of users and items."),
    ] = None,
    candidates: Annotated[int | None, typer.Option(min=2, help="Items that are retrieved to be ranked; 100 by default.")] = None,
    codes: Annotated[bool | None, typer.Option("--codes", help="The ranker reads the codes that retrieval gives items.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted fit in PIPELINE.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in PIPELINE, once the new one is finished.")] = False,
) -> None:
    """Fit retrieval and ranking on DATA, choose how much either counts, measure both."""
    from asymrec.config import Recipe, parse_settings
    from asymrec.pipeline import fit_pipeline
    from asymrec.progress import Progress

    recipe = Recipe.read(config, **parse_settings(settings or [])) if config or settings else None
    options = {
        "model": model,
        "ranker": ranker,
        "candidates": candidates,
        "codes": codes,
        "schema": schema,
        "settings": parse_settings(ranker_settings or []),
    }
    try:
        with Progress() as progress:
            facts = fit_pipeline(data, output, recipe, resume=resume, overwrite=overwrite, listener=progress, **options)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: asymrec pipeline fit -o {output} --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    _print(facts)
    print(output)


@pipeline.command()
def evaluate(folder: Folder, as_json: Json = False) -> None:
    """What ranking adds to retrieval, measured again."""
    from asymrec.pipeline import evaluate_pipeline

    facts = evaluate_pipeline(folder)
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        _print(facts)


@pipeline.command()
def recommend(
    folder: Folder,
    user: UserIds = None,
    history: Histories = None,
    times: Times = None,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    include_seen: IncludeSeen = False,
    only: Only = None,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """The ranked list, with the final score, retrieval's, and the ranker's probability."""
    from asymrec.pipeline import Pipeline

    if (user is None) == (history is None):
        raise ConfigError("give either --user or --history")
    found = Pipeline.load(folder)
    dataset = found.dataset
    users, histories, allowed, denied = asked_ids(dataset, user, history, only, exclude)
    when = asked_times(dataset, history, times)
    lists = found.recommend(histories, k, users=users, times=when, exclude_seen=not include_seen, only=allowed, exclude=denied)
    titles = dataset.titles()
    shown: list[dict[str, Any]] = []
    for at, items in enumerate(lists):
        named = [one | {"title": titles[row]} for one, row in zip(items, dataset.item_rows([one["id"] for one in items]))]
        shown.append({"user": None if users is None else users[at], "items": named})
    if as_json:
        print(json.dumps(shown, indent=1, ensure_ascii=False, default=str))
        return
    for one in shown:
        print("history" if users is None else f"user {one['user']}")
        lines = [
            [str(n), str(i["id"]), i["title"], f"{i['score']:.4f}", f"{i['retrieval']:.4f}", f"{i['ranker']:.4f}"]
            for n, i in enumerate(one["items"], 1)
        ]
        whom = "this history" if users is None else f"user {one['user']}"
        print_list(["", "id", "title", "score", "retrieval", "ranker"], lines, whom)


def _print(facts: dict[str, Any]) -> None:

    rows = []
    for history in ("kept", "removed"):
        for stage, found in facts["metrics"].items():
            rows.append(
                [stage, f"history {history}", *(f"{found[history][name]:.4f}" for name in ("recall@10", "ndcg@10", "recall@20", "ndcg@20"))]
            )
    how = f"{facts['candidates']} candidates of {facts['retrieval']}, ranked by {facts['ranker']}"
    print(f"{facts['data']}: {how}; weight {facts['weight']}")
    print_table(["", "", "Recall@10", "NDCG@10", "Recall@20", "NDCG@20"], rows)
    for one in facts["comparisons"]:
        if one["model"] == "both" and one["metric"] == "ndcg@10":
            said = f"{one['difference']:+.4f} ({one['low']:+.4f} .. {one['high']:+.4f})"
            print(f"ranking adds to NDCG@10, history {one['history']}: {said}, 95 % interval over {one['users']:,} users")
