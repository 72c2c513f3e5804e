"""The tables of a benchmark: one content as Markdown and as a self-contained page, and every figure as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from asymrec.bench.figures import COLUMNS, HISTORIES, Findings, Gain, Row, Spread, findings
from asymrec.bench.plan import Cell, Plan
from asymrec.evaluation.style import CSS
from asymrec.files import atomic

PROTOCOLS = {
    "standard": "leave-last-out, as the literature has it: each user's last interaction, in the order of the files",
    "untied": "the history is what lies at strictly earlier times, the targets are all items of the user's last time step",
    "time": "one cut in time for all users: the targets are all that a user takes after it",
}
HOW = (
    "Every item of the catalogue is ranked for every user, hits are by item, ties are against the model. Kept: items of the history stay "
    "in the ranking, as in the literature; removed: they are taken out. Figures are means over seeds, in brackets the least and the "
    "greatest where they differ. Differences are to the best other row, with the 95 % interval of a paired bootstrap over users (figures "
    "of a user averaged over seeds). Bold: the best of a column."
)


@dataclass(frozen=True)
class Grid:
    head: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]] = field(default_factory=set)  # (row, column)


@dataclass(frozen=True)
class Block:
    """`kind`: h1, h2, text, grid or code; the other of the two fields is empty."""

    kind: str
    text: str = ""
    grid: Grid | None = None


def write_tables(plan: Plan, folder: Path | None = None) -> Findings:
    """table.md, table.csv and table.html of what is finished, into the plan's output or another folder."""
    found = findings(plan)
    content = blocks(found)
    for name, text in (("table.md", markdown(content)), ("table.html", html(content)), ("table.csv", as_csv(found))):
        with atomic((folder or plan.output) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return found


def blocks(found: Findings) -> list[Block]:
    plan = found.plan
    out = [Block("h1", plan.title), *(Block("text", _headline(gain)) for gain in found.gains), Block("text", HOW)]
    if found.open_cells:
        out.append(Block("text", f"Not complete: {len(found.open_cells)} of {len(plan.cells())} cells are still to come."))
    broken = [[f"{data} {protocol}", why] for (data, protocol), why in found.broken.items()]
    for title, lines in (("Failed", broken + _errors(found.failed)), ("Not possible", _errors(found.impossible))):
        if lines:
            out += [Block("h2", title), Block("grid", grid=Grid(["cell", "error" if title == "Failed" else "why"], lines))]
    for (data, protocol), rows in found.rows.items():
        about = found.datasets[data]
        sizes = f"{about['users']:,} users, {about['items']:,} items, {about['interactions']:,} interactions"
        ranked = f"{len(rows[0].users.users):,} test users"
        out.append(Block("h2", f"{data}, protocol {protocol}"))
        out.append(Block("text", f"Protocol {protocol}: {PROTOCOLS[protocol]}. {sizes}; {ranked}."))
        out += [Block("grid", grid=grid) for grid in (_accuracy(rows), _slices(rows), _cost(rows))]
        out.append(Block("text", "What makes each row, for its first seed:"))
        out.append(Block("code", "\n".join(f"{row.command}   # {row.entry.name}" for row in rows)))
    if found.trials:
        out += [Block("h2", "Tuning"), Block("text", _budget(plan)), Block("grid", grid=_trials(found))]
    if found.environments:
        out += [Block("h2", "Machine"), Block("text", "; ".join(found.environments) + ".")]
    return out


def _errors(cells: list[tuple[Cell, dict[str, Any]]]) -> list[list[str]]:
    """What is wrong with a whole data set, or its protocol, is told once."""
    return [list(line) for line in dict.fromkeys((record.get("place", str(cell)), record["error"]) for cell, record in cells)]


def _headline(gain: Gain) -> str:
    asked = gain.headline
    metric = f"{asked.metric.replace('ndcg', 'NDCG').replace('recall', 'Recall')}, history {asked.history}, protocol {gain.protocol}"
    each = "; ".join(
        f"{data} {_percent(share)} ({_short(ours)} against {rival}'s {_short(theirs)}, 95 % interval {_percent(low)} to {_percent(high)})"
        for data, ours, rival, theirs, share, low, high in gain.parts
    )
    missing = f" Not there yet: {', '.join(gain.missing)}." if gain.missing else ""
    data = ", ".join(part[0] for part in gain.parts)
    return (
        f"{asked.model} over the best of {', '.join(asked.rivals)} ({metric}): {_percent(gain.mean)} in the mean over {data}, "
        f"95 % interval {_percent(gain.low)} to {_percent(gain.high)}. {each}.{missing}"
    )


def _accuracy(rows: list[Row]) -> Grid:
    keys = [f"{metric} {history}" for history in HISTORIES for metric in ("recall@10", "ndcg@10")]
    labels = [f"{metric} {history}" for history in HISTORIES for metric in ("R@10", "N@10")]
    differences = [f"N@10 {history} minus the best other" for history in HISTORIES]
    head = ["model", "seeds", *labels, "validation N@10", *differences]
    shown = [[_seeds(row), *(_spread(row.values[key]) for key in (*keys, "validation ndcg@10"))] for row in rows]
    lines = [[row.entry.name, *cells, *(_difference(row, history) for history in HISTORIES)] for row, cells in zip(rows, shown)]
    return Grid(head, lines, _best(rows, keys, 2))


def _slices(rows: list[Row]) -> Grid:
    keys = [f"{name} ndcg@10" for name in ("head", "mid", "tail", "warm", "cold")]
    keys += ["cold recall@10", "cold among cold recall@10", "code-level ndcg@10"]
    cold = next((row.values["cold users"] for row in rows if row.values["cold users"]), None)
    users = f" ({cold.mean:,.0f} users)" if cold else ""
    labels = [*(f"{name} N@10" for name in ("head", "mid", "tail", "warm")), f"cold N@10{users}"]
    labels += ["cold R@10", "cold R@10 among cold", "N@10 by code id"]
    lines = [[row.entry.name, *(_mean(row.values[key], _short) for key in keys)] for row in rows]
    return Grid(["model, history kept", *labels], lines, _best(rows, keys[:-1], 1))


def _cost(rows: list[Row]) -> Grid:
    keys: dict[str, Callable[[float], str]] = {
        "parameters": "{:,.0f}".format,
        "training seconds": _seconds,
        "scoring seconds": _seconds,
        "peak memory MiB": "{:,.0f}".format,
    }
    lines = [[row.entry.name, *(_mean(row.values[key], show) for key, show in keys.items())] for row in rows]
    return Grid(["model", "parameters", "training s", "scoring s (all test users)", "peak memory MiB"], lines)


def _budget(plan: Plan) -> str:
    tuning = plan.tuning
    where = f"on protocol {tuning.protocol}, and what was chosen there holds for the others"
    if tuning.protocol == "each":
        where = "on each protocol for itself"
    limits = [f"{tuning.epochs} epochs a trial"] if tuning.epochs else []
    limits += [f"{tuning.minutes:g} minutes a trial"] if tuning.minutes else []
    untuned = [entry.name for entry in plan.models if not entry.tune]
    return (
        f"The same for every model: {', '.join([f'{tuning.trials} trials', *limits])}, seed {tuning.seed}; fewer only where a model has no "
        f"more settings to try. Trial 1 is the default, the others are drawn from the model's space. Chosen by NDCG@10 of the validation "
        f"part with the history kept, {where}; trials never look at the test." + (f" Not tuned: {', '.join(untuned)}." if untuned else "")
    )


def _trials(found: Findings) -> Grid:
    lines = []
    for trial, record, figure, chosen in found.trials:
        shown = record["state"] if figure is None else _short(figure)
        about = [trial.data, trial.protocol, trial.entry.name, str(trial.trial)]
        lines.append([*about, _settings(trial.tuned), shown, "yes" if chosen else ""])
    return Grid(["data", "protocol", "model", "trial", "settings", "validation N@10", "chosen"], lines)


def _settings(settings: dict) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items()) or "default"


def _seeds(row: Row) -> str:
    return str(row.planned) if len(row.cells) == row.planned else f"{len(row.cells)} of {row.planned}"


def _best(rows: list[Row], keys: list[str], first: int) -> set[tuple[int, int]]:
    best = set()
    for column, key in enumerate(keys, first):
        means = [row.values[key].mean if row.values[key] else -1.0 for row in rows]
        if len(rows) > 1 and max(means) > 0:
            best |= {(at, column) for at, mean in enumerate(means) if mean == max(means)}
    return best


def _difference(row: Row, history: str) -> str:
    if history not in row.against:
        return ""
    rival, one = row.against[history]
    return f"{_signed(one.difference)} ({_signed(one.low)} to {_signed(one.high)}), {rival}"


def _spread(value: Spread | None) -> str:
    if value is None:
        return ""
    mean, low, high = map(_short, (value.mean, value.low, value.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def _mean(value: Spread | None, show: Callable[[float], str]) -> str:
    return "" if value is None else show(value.mean)


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def markdown(content: list[Block]) -> str:
    return "\n\n".join(_markdown(block) for block in content) + "\n"


def _markdown(block: Block) -> str:
    if block.grid is None:
        return {"h1": f"# {block.text}", "h2": f"## {block.text}", "code": f"```\n{block.text}\n```"}.get(block.kind, block.text)
    grid = block.grid
    lines = [grid.head, ["---", *("---:" if _right(grid, at) else "---" for at in range(1, len(grid.head)))]]
    for at, row in enumerate(grid.rows):
        cells = (cell.replace("|", "\\|") for cell in row)
        lines.append([f"**{cell}**" if (at, column) in grid.best else cell for column, cell in enumerate(cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def html(content: list[Block]) -> str:
    """One self-contained page in the style of a run's report."""
    title = escape(content[0].text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{CSS}main {{ max-width: 84rem; }} td.words, th.words {{ text-align: left; }} "
        "td.words { white-space: normal; } pre { overflow-x: auto; font-size: .82rem; } .scroll { margin: 1rem 0; }</style></head>"
        f"<body><main>{''.join(_html(block) for block in content)}<footer>Written by asymrec.</footer></main></body></html>\n"
    )


def _html(block: Block) -> str:
    if block.grid is None:
        tag = {"text": "p", "code": "pre"}.get(block.kind, block.kind)
        return f"<{tag}>{escape(block.text)}</{tag}>"
    grid = block.grid
    kinds = ["" if _right(grid, at) else "words" for at in range(len(grid.head))]
    head = "".join(f'<th class="{kind}">{escape(label)}</th>' for kind, label in zip(kinds, grid.head))
    body = ""
    for at, row in enumerate(grid.rows):
        classes = ["top" if (at, column) in grid.best else kind for column, kind in enumerate(kinds)]
        cells = "".join(f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(classes[1:], row[1:]))
        body += f"<tr><th>{escape(row[0])}</th>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _right(grid: Grid, column: int) -> bool:
    """Numbers stand to the right."""
    cells = [row[column] for row in grid.rows if row[column]]
    return column > 0 and all(cell[0] in "+-.0123456789" for cell in cells)


def as_csv(found: Findings) -> str:
    """A line a row: mean, least and greatest of every figure, both differences, the command."""
    spreads = [f"{column} {kind}" for column in COLUMNS for kind in ("mean", "min", "max")]
    against = [f"{history} {name}" for history in HISTORIES for name in ("rival", "difference", "low", "high", "p")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "protocol", "model", "seeds", "seeds planned", *spreads, *against, "command"])
    for rows in found.rows.values():
        for row in rows:
            line: list = [row.data, row.protocol, row.entry.name, len(row.cells), row.planned]
            for column in COLUMNS:
                value = row.values[column]
                line += ["", "", ""] if value is None else [value.mean, value.low, value.high]
            for history in HISTORIES:
                rival, one = row.against.get(history, ("", None))
                line += [rival, *(["", "", "", ""] if one is None else [one.difference, one.low, one.high, one.p])]
            writer.writerow([*line, row.command])
    return text.getvalue()
