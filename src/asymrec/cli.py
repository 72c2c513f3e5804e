"""The command line. Each command is a thin shell over a Python function of the same meaning.

Nothing heavy is imported before a command needs it: `--help` answers at once. Whatever the user's input can cause ends as one
line on stderr and exit code 2; an interruption ends with 130.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from asymrec.cli_bench import bench
from asymrec.cli_pipeline import pipeline
from asymrec.cli_rank import rank
from asymrec.cli_shared import (
    DropDuplicates,
    DropIncomplete,
    DropUnknown,
    Exclude,
    Histories,
    IncludeSeen,
    ItemColumn,
    Only,
    PositionColumn,
    TimeColumn,
    Times,
    UserColumn,
    UserIds,
    asked_ids,
    asked_times,
    own_ids,
    print_list,
    print_table,
    reading,
)
from asymrec.errors import AsymrecError, RunError, install
from asymrec.version import __version__

# Threads that wait for each other sleep instead of spinning, which on a processor with other work to do makes a step several times
# faster. OpenMP reads it once, when torch is loaded: later is too late.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HISTORY = 5  # latest titles that `recommend` shows


class Commands(typer.core.TyperGroup):
    """Where errors end, for every command."""

    def invoke(self, ctx: Any) -> Any:
        warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
        try:
            return super().invoke(ctx)
        except AsymrecError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Generative recommendation: fit on two tables, evaluate, recommend.",
)

app.add_typer(rank, name="rank")
app.add_typer(pipeline, name="pipeline")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, made by `asymrec fit`.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"asymrec {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def fit(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Folder with interactions.* and items.*, or an interactions file.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Run folder to write.", show_default=False)] = ...,
    items: Annotated[Path | None, typer.Option(metavar="FILE", help="Item table, where DATA is a file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="asymrec (default), asymrec+collaborative, fusion, sasrec, sasrec+content, hstu, rpg, tiger, flexcode, counts, ease, "
            "itemknn or popularity.",
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="Settings as YAML, or a preset such as paper.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")] = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    position_column: PositionColumn = None,
    drop_unknown: DropUnknown = False,
    drop_duplicates: DropDuplicates = False,
    drop_incomplete: DropIncomplete = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted fit in RUN, with its data and settings.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in RUN, once the new one is finished.")] = False,
    on: Annotated[
        str | None,
        typer.Option(metavar="PART", help="test (default), or validation: evaluate on that and leave the test alone, for tuning."),
    ] = None,
) -> None:
    """Fit a model on DATA, evaluate it beside the baselines, write a run folder with report.html."""
    from asymrec.config import Recipe, parse_settings

    chosen = parse_settings(settings or [])
    read = reading(
        user=user_column, item=item_column, time=time_column, position=position_column,
        drop_unknown=drop_unknown, drop_duplicates=drop_duplicates, drop_incomplete=drop_incomplete,
    )  # fmt: skip
    chosen |= {f"data.{name}": value for name, value in read.items()}
    recipe = Recipe.read(config, **chosen)
    if data is None and not (resume and output.exists()):
        raise RunError(f"DATA is missing: the folder or file to fit on{f'; there is nothing to resume in {output}' if resume else ''}")

    from asymrec.progress import Progress
    from asymrec.runs import fit_run

    try:
        with Progress() as progress:
            options = {"items": items, "model": model, "resume": resume, "overwrite": overwrite, "on": on}
            facts = fit_run(data, output, recipe, **options, listener=progress)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: asymrec fit -o {output} --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    _print_metrics(facts)
    print(f"report: {output / 'report.html'}")


@app.command()
def evaluate(
    run: Run,
    against: Annotated[Path | None, typer.Option(metavar="RUN2", help="Another run on the same data: is the difference real?")] = None,
    on: Annotated[str | None, typer.Option(metavar="PART", help="test or validation; by default what RUN was evaluated on.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate RUN again, and rewrite its metrics.json and report.html."""
    from asymrec.progress import Progress
    from asymrec.runs import compare_runs, evaluate_run, read_facts

    if against is not None:
        read_facts(against)  # before what takes minutes
    with Progress() as progress:
        facts = evaluate_run(run, progress, on=on)
    compared = compare_runs(run, against) if against else []
    if as_json:
        print(json.dumps(facts | ({"against": compared} if against else {}), indent=1, ensure_ascii=False))
        return
    _print_metrics(facts)
    if compared:
        print(f"\n{run} minus {against}, paired bootstrap over {compared[0]['users']:,} users")
        head = ["metric", "history", str(run), str(against), "difference", "95 % interval", "p"]
        print_table(
            head,
            [
                [
                    *(_label(one["metric"]), one["history"], f"{one['a']:.4f}", f"{one['b']:.4f}", f"{one['difference']:+.4f}"),
                    *(f"{one['low']:+.4f} .. {one['high']:+.4f}", "< 0.001" if one["p"] < 0.001 else f"{one['p']:.3f}"),
                ]
                for one in compared
            ],
        )


@app.command()
def recommend(
    run: Run,
    user: UserIds = None,
    history: Histories = None,
    times: Times = None,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    include_seen: IncludeSeen = False,
    only: Only = None,
    exclude: Exclude = None,
    as_json: Json = False,
) -> None:
    """Recommend items to users of the data set, or to anyone with a history."""
    if user is not None and history is not None:
        raise RunError("--user and --history are both given: it is one or the other")
    if user is None and history is None:
        raise RunError("say whom to recommend to: --user U, or --history A,B,C")
    from asymrec.models import Recommender

    model = Recommender.load(run)
    dataset = model.dataset
    users, histories, allowed, denied = asked_ids(dataset, user, history, only, exclude)
    barred = model.barred(allowed, denied)
    if barred is not None and barred.all():
        raise RunError("no item is left to recommend: --only and --exclude leave none")
    when = asked_times(dataset, history, times)
    ids, scores = model.recommend(histories, k, users=users, times=when, exclude_seen=not include_seen, only=allowed, exclude=denied)

    titles = dataset.titles()
    if histories is None:
        sequences = dataset.sequences.take(dataset.user_rows(users))
        rows = [sequences[at] for at in range(len(sequences))]
    else:
        rows = [dataset.item_rows(each) for each in histories]
    shown = []
    for at, (best, values) in enumerate(zip(ids, scores)):
        found = enumerate(zip(best, dataset.item_rows(best), values), 1)
        shown.append(
            {
                "user": None if users is None else users[at],
                "history": [{"id": dataset.item_ids[int(row)].as_py(), "title": titles[row]} for row in rows[at]],
                "items": [{"rank": rank, "id": own, "title": titles[row], "score": score} for rank, (own, row, score) in found],
            }
        )
    if as_json:
        print(json.dumps(shown, indent=1, ensure_ascii=False, default=str))
        return
    for at, one in enumerate(shown):
        latest = [item["title"] for item in one["history"][-HISTORY:]]
        earlier = len(one["history"]) - len(latest)
        print(("" if at == 0 else "\n") + ("history" if users is None else f"user {one['user']}") + f" ({len(one['history'])} items)")
        print("  latest: " + (" | ".join(latest) or "nothing") + (f"  (and {earlier:,} earlier)" if earlier else ""))
        lines = [[str(i["rank"]), str(i["id"]), i["title"], f"{i['score']:.4f}"] for i in one["items"]]
        print_list(["", "id", "title", "score"], lines, "this history" if users is None else f"user {one['user']}")


@app.command()
def codes(
    run: Run,
    item: Annotated[str | None, typer.Option(metavar="ID", help="Show this item's codes and the items that share most of them.")] = None,
    k: Annotated[int, typer.Option("-k", help="With --item: how many others.")] = 10,
    as_json: Json = False,
) -> None:
    """How well the codebooks are used and what the codes keep; with --item, one item's codes."""
    from asymrec.results import nearest_by_codes
    from asymrec.runs import read_codebook

    if item is None:
        from asymrec.quantize.report import describe

        book = read_codebook(run)
        print(json.dumps(book, indent=1) if as_json else describe(book))
        return
    from asymrec.models import Recommender

    model = Recommender.load(run)
    (own,) = own_ids(model.dataset, "item", [item])
    found = nearest_by_codes(model, own, k)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False, default=str))
        return
    print(f"{found['id']}  {found['title']}")
    for number, facet in enumerate(found["codes"], 1):
        print(f"  facet {number:>2}: " + " ".join(f"{code:>5}" for code in facet))
    print_table(["shared", "id", "title"], [[f"{n['shared']} of {found['n_codes']}", str(n["id"]), n["title"]] for n in found["nearest"]])


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Public data set.", show_default=False)] = None,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Your download of it; --list tells what.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DATA", help="Folder to write.", show_default=False)] = None,
    core: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="Leave out users and items with fewer than K interactions, until none has.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the names that are known, and what they are made of.")] = False,
) -> None:
    """Make a public data set, out of your own download, into the two tables that `fit` reads."""
    from asymrec.data.sources import SOURCES, fetch

    if listed:
        print_table(["name", "made of", "core"], [[name, source.files, str(source.core or "")] for name, source in SOURCES.items()])
        return
    if name is None or output is None:
        raise RunError("give the data set's NAME and the folder, -o DATA; `asymrec data --list` tells the names")
    print(fetch(name, output, files or [], core), file=sys.stderr)
    print(output)


app.command()(bench)


@app.command()
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="ASYMREC_STORE", help="sqlite:///FILE or postgresql://...; by default RUN.store.sqlite."),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="API keys are needed on loopback too.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="No API keys, though others can reach the address.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Most requests that one call of the model answers.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for a recommendation.")] = 5.0,
    threads: Annotated[int, typer.Option(min=1, help="Of the model.")] = 1,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line for every request, not only for failed ones.")] = False,
) -> None:
    """Serve RUN over HTTP, with a page at /: recommendations, events, items that come and go."""
    run_server = _serving("server").serve
    run_server(run, host, port, store, keys, insecure, threads, access_log, batch=batch, timeout=timeout)


@app.command()
def keys(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="add, list or remove.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="add: whose key; remove: whose, or its id, as listed.")] = None,
    store: Annotated[str | None, typer.Option(metavar="URL", envvar="ASYMREC_STORE", help="The server's store.")] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="Instead of a URL: the store beside this run.")] = None,
    scope: Annotated[str, typer.Option(metavar="SCOPE", help="add: read, or write, which includes read.")] = "read",
) -> None:
    """API keys of a server: `keys add NAME` prints one, once."""
    if run is not None and store == os.environ.get("ASYMREC_STORE"):
        store = None  # what is said goes before what is in the environment
    if (store is None) == (run is None):
        raise RunError("give the server's store: --run RUN, or --store URL")
    if scope not in ("read", "write"):
        raise RunError(f"a scope is read or write, not '{scope}'")
    if action not in ("add", "list", "remove") or (not (name or "").strip()) != (action == "list"):
        raise RunError("say: keys add NAME, keys list, or keys remove NAME")
    from datetime import datetime, timezone

    if run is not None:
        _serving("snapshot").check_run(run)  # else a key for a run that is not there
    opened = _serving("store").Store(store or _serving("server").default_store(run), serves=False)
    try:
        if action == "add":
            print(_serving("security").new_key(opened, name, scope))
        elif action == "list":
            made = [(one, datetime.fromtimestamp(one["made"] / 1000, timezone.utc)) for one in opened.list_keys()]
            print_table(["id", "name", "scopes", "made"], [[o["key"], o["name"], o["scopes"], f"{at:%Y-%m-%d %H:%M}"] for o, at in made])
        else:
            _serving("security").remove_key(opened, name)
    finally:
        opened.close()


@app.command()
def batch(
    run: Run,
    source: Annotated[Path, typer.Argument(metavar="USERS", help="Parquet with a column history, else of user ids.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Parquet to write.", show_default=False)] = ...,
    k: Annotated[int, typer.Option("-k", min=1, help="How many for each.")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Items of the history may be recommended again.")] = False,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Unknown users get empty lists, unknown items of a history are left out.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Over a Ray cluster, with as many models; FILE becomes a folder.")] = 0,
) -> None:
    """Recommendations for every line of USERS, as a file; memory does not grow with the lines."""
    from asymrec.serving.batch import write_lists, write_lists_with_ray

    if workers:
        write_lists_with_ray(run, source, output, k, not include_seen, workers, drop_unknown=drop_unknown)
    else:
        print(f"{write_lists(run, source, output, k, not include_seen, drop_unknown=drop_unknown):,} lines", file=sys.stderr)
    print(output)


def _serving(module: str) -> Any:
    """A module of the server. Raises RunError: what it needs is not installed."""
    from importlib import import_module

    try:
        return import_module(f"asymrec.serving.{module}")
    except ImportError as error:
        raise RunError(f"the server needs {error.name}: {install('serve')}") from None


def _print_metrics(facts: dict[str, Any]) -> None:
    data = facts["dataset"]
    part = data.get("part", "test")
    sizes = f"{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions"
    print(f"{data['name']}: {sizes}; {part} on {data[f'{part} users']:,} users")
    columns = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10", "coverage@10")
    rows = []
    for history in ("kept", "removed"):
        for model, found in facts["metrics"].items():
            rows.append([model, f"history {history}", *(f"{found[history][column]:.4f}" for column in columns)])
            level = found.get("code_level")
            if level and level["ids"] < found["items"]:  # else an id is an item
                cells = (f"{level[history][column]:.4f}" if column in level[history] else "" for column in columns)
                rows.append(["  hits by code id", f"history {history}", *cells])
    print_table(["", "", *map(_label, columns)], rows)


def _label(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{name.upper() if name in ('ndcg', 'mrr') else name.capitalize()}@{k}"


def main() -> None:
    app(prog_name="asymrec")
