"""`asymrec bench`: a plan's cells, its tables, and exports in and out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from asymrec.cli_shared import print_table


def bench(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The benchmark as YAML.", show_default=False)],
    folders: Annotated[
        list[str] | None, typer.Option("--data", metavar="NAME=FOLDER", help="Where a data set of CONFIG is; may be repeated.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What the data folders of CONFIG are relative to; by default CONFIG's own folder.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Instead of CONFIG's.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=VALUE,...", help="Only these cells: data, protocol, model, seed; may be repeated.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Cells at once, instead of CONFIG's.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the cells and their state, and stop.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Only write the tables of what is finished.")] = False,
    export: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Only write tables, ranks and a log a cell, to be committed.")
    ] = None,
    imports: Annotated[
        list[Path] | None, typer.Option("--import", metavar="FOLDER", help="Only take over what is finished in an export; may be repeated.")
    ] = None,
) -> None:
    """Fit a grid of models, data sets, protocols and seeds, tune on validation, write one table. The same command goes on."""
    from asymrec.bench.export import export as write_export
    from asymrec.bench.export import take
    from asymrec.bench.plan_file import parse_folders, read_plan
    from asymrec.bench.run import run_cells, state
    from asymrec.bench.table import write_tables

    plan = read_plan(config, output=output, root=root, folders=parse_folders(folders or []), jobs=jobs)
    cells = plan.cells(only or [])
    if listed:
        print_table(["cell", "state"], [[str(cell), state(plan, cell)] for cell in (*plan.trials_of(cells), *cells)])
        return
    failed = []
    for folder in imports or []:
        taken, left = take(plan, folder)
        for cell, why in left:
            print(f"note: {cell} is not taken from {folder}: {why}", file=sys.stderr)
        print(f"{folder}: {len(taken)} cells taken")
    if not imports and not table and export is None:
        for entry in {cell.entry.name: cell.entry for cell in cells}.values():
            for name in entry.passed_over():
                print(f"note: {entry.name}: setting '{name}' means nothing to model '{entry.model}'", file=sys.stderr)
        try:
            failed = run_cells(plan, cells, lambda line: print(line, flush=True))
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            raise typer.Exit(130) from None
    found = write_tables(plan) if export is None else write_export(plan, export)
    print(f"table: {plan.output / 'table.html'}" if export is None else export)
    if failed:
        print(f"error: {len(failed)} cells failed, the first: {failed[0]}", file=sys.stderr)
    for (data, protocol), why in found.broken.items():
        print(f"error: {data} {protocol}: {why}", file=sys.stderr)
    if failed or found.broken:
        raise typer.Exit(1)
