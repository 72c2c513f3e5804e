"""A run as one page that a person would read: self-contained HTML, nothing fetched, no script, light and dark, phone and desk."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from asymrec.errors import EvaluationError
from asymrec.evaluation import charts
from asymrec.evaluation.style import CSS
from asymrec.evaluation.summary import best_epoch, cutoffs, duration, headline_k, is_number, own_model, percent, protocols, summary

PARTS = (
    "title", "subtitle", "model", "dataset", "metrics", "comparisons", "curves", "codebook", "examples", "config", "environment", "seconds",
)  # fmt: skip
SHOWN = 10  # items of a history that an example shows before folding the rest

COLD = "Cold among cold"
EXPLAINED = {
    "Recall@k": "The share of a user's held-out items that stand among the first k recommendations, averaged over users. "
    "With one held-out item: the share of users for whom it was found.",
    "NDCG@k": "As recall, but a hit counts for more the higher it stands: 1 at the first place, 0.63 at the second, 0.29 at the tenth. "
    "1 would be perfect.",
    "MRR@k": "One over the place of the first hit, 0 when there is none among the first k, averaged over users.",
    "Coverage@k": "The share of the catalogue that stands in at least one user's first k.",
    "Novelty@k": "How rare the recommended items are, in bits: one more means half as popular in training.",
    "Gini@k": "How unequally items are shown: 0 when all equally often, near 1 when a few take all the places.",
    "Effective rank": "How many independent directions the scores of users have; 1 means that everybody gets the same list.",
    "History kept": "Items that the user has already had stay in the ranking and may take places: the usual way in the literature.",
    "History removed": "Items of the user's history are taken out of the ranking first, as a shop would show it. "
    "A held-out item that the user had before then counts as missed.",
    "Head, middle, tail, cold": "Items sorted by training interactions; the most popular that make up a third of all interactions, "
    "the next third, the rest, and items without any. A slice looks at held-out items of that kind alone, ranked among all items.",
    COLD: "Held-out items without training interactions, ranked among such items alone: whether the model tells one new "
    "item from another, and no longer whether it prefers new ones to known ones.",
    "Hits by code id": "A hit when any item that shares the held-out item's code id stands in the place: what is left to do, to tell "
    "these items apart, is not asked. Hits by item are what counts; some papers print the others.",
}
SPLITS = {
    "leave-last-out": "Protocol: standard. Each user's last item is held out for the test, the one before it for validation.",
    "untied": "Protocol: untied. The items of each user's last time step are held out for the test, those of the step before it for "
    "validation; a history ends before them, so that the order inside a time step cannot be used.",
    "time": "Protocol: time. The latest interactions of all are held out for the test, those before them for validation.",
}
SLICES = {
    "popularity": "popularity of the held-out item",
    "frequency": "training count of the held-out item",
    "warmth": "warm and cold items",
    "history": "length of the history",
}

CODEBOOK = {
    "energy_kept": "energy kept by the projection",
    "r2": "R² of the decoded vectors",
    "neighbour_recall": "of ten nearest, still nearest",
    "usage_gini": "Gini of codeword use",
    "dead_codebooks": "dead codebooks",
    "identical_ids": "items that share their id",
    "shared_ids": "with items of other vectors",
}


def write_report(path: str | Path, facts: dict[str, Any]) -> None:
    """Writes the page, whole or not at all. Every part of `facts` may be missing, and is then left out:

    - title, subtitle: str; model: the name, among `metrics`, of the model that the page is about (otherwise the first)
    - dataset: {"name": str, "users": int, "items": int, "interactions": int, any other label: number or str, "notes": [str]};
      "split" and "part" (test or validation) say what the metrics were measured on
    - metrics: {model name: `Evaluation.metrics`}, the model and its baselines, in the order to show; five have colours of their own
    - comparisons: [{"model": name, "baseline": name, **`Comparison.dict()`}]
    - curves: [{"epoch": int, "loss": float, "ndcg": float | None, "seconds": float}], ndcg of the validation, at 10
    - codebook: `quantize.report.report(...)`; used are code_shape, codewords, perplexity and dead_codes [facets][levels],
      dead_codebooks, energy_kept, energy_kept_start, space_r2 (a level each), r2, neighbour_recall, usage_gini, identical_ids,
      shared_ids, repaired_identical_ids, repaired_shared_ids; shares in 0 .. 1
    - examples: [{"user": id, "history": [title], "recommended": [{"title", "score": float, "hit": bool}], "targets": [title]}],
      histories oldest first
    - config: {section: {setting: value}} or {setting: value}; environment: {label: value}; seconds: {stage: seconds} or a number

    Raises EvaluationError for a part of another name, RunError where the file cannot be written.
    """
    from asymrec.files import atomic

    page = render(facts)
    with atomic(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")


def render(facts: dict[str, Any]) -> str:
    """The page as text. See `write_report`."""
    if unknown := set(facts) - set(PARTS):
        raise EvaluationError(f"a report has no part '{min(unknown)}'; its parts are {', '.join(PARTS)}")
    title = escape(str(facts.get("title") or "Report"))
    lead = escape(summary(facts))
    sections = (_dataset, _accuracy, _slices, _curves, _codebook, _examples, _settings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">'
        f"<title>{title}</title><style>{CSS}</style></head><body><main><header><h1>{title}</h1>"
        + (f'<p class="by">{escape(str(facts["subtitle"]))}</p>' if facts.get("subtitle") else "")
        + (f'<p class="lead">{lead}</p>' if lead else "")
        + "</header>"
        + "\n".join(section(facts) for section in sections)
        + "<footer>Written by asymrec. Every rank is among the whole catalogue, ties counted against the model.</footer>"
        + "</main></body></html>\n"
    )


def _dataset(facts: dict) -> str:
    data = facts.get("dataset") or {}
    known = {label: value for label, value in data.items() if label not in ("name", "notes", "part") and value is not None}
    if not known and not data.get("notes"):
        return ""
    users, items, interactions = (data.get(name) for name in ("users", "items", "interactions"))
    if is_number(users) and is_number(items) and is_number(interactions) and users and items:
        known["per user"] = f"{interactions / users:,.1f}"
        known["density"] = percent(interactions / users / items)
    return _section("Data", _figures(known) + _list(data.get("notes") or [], "notes"))


def _accuracy(facts: dict) -> str:
    metrics = facts.get("metrics") or {}
    if not metrics:
        return ""
    own, ks, k = own_model(facts), cutoffs(metrics), headline_k(metrics)
    names = ("Recall", "NDCG", "MRR")
    head = "".join(f'<th class="group first" colspan="{len(ks)}">{_term(f"{name}@k", name)}</th>' for name in names)
    under = "".join(f'<th class="{"first" if at == 0 else ""}">@{cut}</th>' for _ in names for at, cut in enumerate(ks))
    parts = [_protocol(facts.get("dataset") or {})]
    for protocol in protocols(metrics):
        keys = [f"{name.lower()}@{cut}" for name in names for cut in ks]
        body = _rows(metrics, own, [(4, [found[protocol].get(key) for found in metrics.values()]) for key in keys], group=len(ks))
        parts.append(f"<h3>{_term(f'History {protocol}')}</h3>{_table(f'<tr><th></th>{head}</tr><tr><th></th>{under}</tr>', body)}")
        if protocol == "removed" and (missed := metrics[own][protocol].get("missed")):
            share = percent(missed / metrics[own]["targets"])
            parts.append(f'<p class="aside">{share} of the held-out items were in the history already and count as missed here.</p>')
    protocol = protocols(metrics)[0]
    columns = [
        (digits, [found[protocol].get(f"{name}@{k}") for found in metrics.values()])
        for name, digits in (("coverage", "percent"), ("novelty", 2), ("gini", 3))
    ]
    columns.append((1, [found.get("effective_rank") for found in metrics.values()]))
    titles = ("Coverage@k", "Novelty@k", "Gini@k", "Effective rank")
    head = "".join(f"<th>{_term(name, name.replace('@k', f'@{k}'))}</th>" for name in titles)
    parts.append(f"<h3>What is shown</h3>{_table(f'<tr><th></th>{head}</tr>', _rows(metrics, own, columns))}")
    parts.append(_code_level(metrics, k))
    parts.append(_comparisons(facts.get("comparisons") or []))
    words = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in EXPLAINED.items())
    parts.append(f"<details><summary>How to read these numbers</summary><dl>{words}</dl></details>")
    return _section("Accuracy", "".join(parts))


def _protocol(data: dict) -> str:
    """What is held out, and which part of it was measured."""
    said = SPLITS.get(data.get("split"), "")
    if data.get("part") == "validation":
        said += " Measured on the validation part, for tuning: the test was left alone."
    return f'<p class="aside">{said.strip()}</p>' if said else ""


def _code_level(metrics: dict, k: int) -> str:
    """Hits by code id beside hits by item, of the models that have codes."""
    known = {model: found for model, found in metrics.items() if found.get("code_level")}
    if not known:
        return ""
    shared = {model: found for model, found in known.items() if found["code_level"]["ids"] < found["items"]}
    title = f"<h3>{_term('Hits by code id')}</h3>"
    if not shared:
        return f'{title}<p class="aside">Every item has a code id of its own: a hit by code id is a hit by item.</p>'
    body = ""
    for model, found in shared.items():
        for protocol in protocols(metrics):
            pairs = (level[protocol].get(f"{name}@{k}") for name in ("recall", "ndcg") for level in (found, found["code_level"]))
            cells = "".join(f"<td>{_number(value, 4)}</td>" for value in pairs)
            ids = f"<td>{found['code_level']['ids']:,} of {found['items']:,}</td>"
            body += f"<tr><th>{escape(model)}, history {protocol}</th>{ids}{cells}</tr>"
    head = "".join(f"<th>{_label(f'{name}@{k}')} by {what}</th>" for name in ("recall", "ndcg") for what in ("item", "code id"))
    return f"{title}{_table(f'<tr><th></th><th>ids of items</th>{head}</tr>', body)}"


def _comparisons(found: list[dict]) -> str:
    lines = []
    for one in found:
        what = f"{one['model']} minus {one['baseline']}, {_label(one['metric'])} with history {one['history']}"
        interval = f"95 % interval {_signed(one['low'])} to {_signed(one['high'])}"
        chance = "p < 0.001" if one["p"] < 0.001 else f"p = {one['p']:.3f}"
        lines.append(f"{what}: {_signed(one['difference'])} ({interval}, {chance}, {one['users']:,} users).")
    return f"<h3>Is the difference real? <small>paired bootstrap over users</small></h3>{_list(lines, 'notes')}" if lines else ""


def _slices(facts: dict) -> str:
    metrics = facts.get("metrics") or {}
    if not any(found.get("slices") for found in metrics.values()):
        return ""
    protocol, metric = protocols(metrics)[0], f"ndcg@{headline_k(metrics)}"
    first = next(found["slices"] for found in metrics.values() if found.get("slices"))
    cold = first.get("warmth", {}).get("cold", {}).get("users")
    kinds = [kind for kind in SLICES if kind in first and (kind != "warmth" or cold)]  # else warm items are all there is
    drawn, tables = [], []
    for kind in kinds:
        groups, title = [], SLICES[kind]
        for name, part in first[kind].items():
            each = [found.get("slices", {}).get(kind, {}).get(name, {}) for found in metrics.values()]
            if part["users"]:
                groups.append((_slice_name(kind, name), f"{part['users']:,} users", [one.get(protocol, {}).get(metric) for one in each]))
        chart = charts.bars(groups, list(metrics), f"{_label(metric)} by {title}")
        if chart:
            drawn.append(f'<div class="card">{chart}</div>')
            tables.append(_slice_table(metrics, kind, first[kind], metric, title))
    if not drawn:
        return ""
    words = EXPLAINED["Head, middle, tail, cold"] + (f" {COLD}: {EXPLAINED[COLD]}" if "warmth" in kinds else "")
    aside = f'<p class="aside">{_label(metric)} with history {protocol}. {escape(words)}</p>'
    details = f"<details><summary>The same as tables</summary>{''.join(tables)}</details>"
    return _section("For whom, and on what", f'{aside}{charts.legend(list(metrics))}<div class="pair">{"".join(drawn)}</div>{details}')


def _slice_table(metrics: dict, kind: str, parts: dict, metric: str, title: str) -> str:
    shown = [(model, protocol) for model in metrics for protocol in protocols(metrics)]
    head = "".join(f"<th>{escape(model)}, {protocol}</th>" for model, protocol in shown)
    extra = "" if kind == "history" else "<th>items</th><th>interactions</th>"
    body = ""
    for name, part in parts.items():
        cells = "".join(
            f"<td>{_number(metrics[model].get('slices', {}).get(kind, {}).get(name, {}).get(protocol, {}).get(metric), 4)}</td>"
            for model, protocol in shown
        )
        sizes = "".join(f"<td>{part[key]:,}</td>" for key in ("users", "items", "interactions") if key in part)
        body += f"<tr><th>{escape(_slice_name(kind, name))}</th>{sizes}{cells}</tr>"
    return f"<h3>{_label(metric)} by {title}</h3>{_table(f'<tr><th></th><th>users</th>{extra}{head}</tr>', body)}"


def _curves(facts: dict) -> str:
    curves = facts.get("curves") or []
    best = best_epoch(curves)
    drawn = [
        charts.line([(point["epoch"], point[key]) for point in curves if is_number(point.get(key))], title, from_zero, mark)
        for key, title, from_zero, mark in (("loss", "Training loss", False, None), ("ndcg", "Validation NDCG@10", True, best))
    ]
    if not any(drawn):
        return ""
    seconds = [point["seconds"] for point in curves if is_number(point.get("seconds"))]
    pace = f", {duration(sum(seconds) / len(seconds))} each" if seconds else ""
    kept = f" The weights of epoch {best} were kept: the best on the validation users." if best is not None else ""
    cards = "".join(f'<div class="card">{chart}</div>' for chart in drawn if chart)
    return _section("Learning", f'<p class="aside">{len(curves)} epochs{pace}.{kept}</p><div class="pair">{cards}</div>')


def _codebook(facts: dict) -> str:
    book = facts.get("codebook") or {}
    perplexity = book.get("perplexity")
    if not book:
        return ""
    known: dict[str, str] = {}
    if book.get("code_shape"):
        known["an item's code"] = " × ".join(map(str, book["code_shape"])) + (f" of {book['codewords']}" if book.get("codewords") else "")
    for key, label in CODEBOOK.items():
        if is_number(book.get(key)):
            counted = key == "dead_codebooks"
            known[label] = f"{book[key]:,}" if counted else f"{book[key]:.3f}" if key in ("r2", "usage_gini") else percent(book[key])
    small = {
        CODEBOOK[key]: f"{said} {percent(book[other])}"
        for key, other, said in (
            ("energy_kept", "energy_kept_start", "at the start"),
            ("identical_ids", "repaired_identical_ids", "after the repair"),
            ("shared_ids", "repaired_shared_ids", "after the repair"),
        )
        if is_number(book.get(other))
    }
    text = _figures(known, small)
    if perplexity and perplexity[0]:
        codewords = book.get("codewords_fitted") or book.get("codewords") or max(max(row) for row in perplexity)
        r2 = book.get("space_r2")
        r2 = r2 if isinstance(r2, list) and len(r2) == len(perplexity[0]) else None
        text += (
            f'<p class="aside">Each cell is a codebook; the stronger its colour, the more of its {codewords:,} codewords carry items '
            "(perplexity: the number of codewords that, used alike, would be as varied)"
            f'{"; R² is that of the projected vectors after each level" if r2 else ""}.</p>'
            f'<div class="card">{charts.heat(perplexity, book.get("dead_codes"), codewords, r2, book.get("branches"))}</div>'
        )
    return _section("Codebooks", text + _split(book))


def _split(book: dict) -> str:
    """How FlexCode's router splits an item's codes between its branches, by tenths of popularity."""
    parts = book.get("split") or []
    if not parts or not is_number(book.get("budget")):
        return ""
    series = ("collaborative codes", "semantic codes")
    groups = [
        (
            f"{one['interactions']:,.1f} interactions",
            f"share {one['share']:.2f}",
            [one["collaborative_codes"], book["budget"] - one["collaborative_codes"]],
        )
        for one in parts
    ]
    said = f"Items in tenths by popularity, the rarest first: how many of their {book['budget']} codes tell what users did with them."
    if is_number(book.get("aligned")):
        said += f" Of items drawn by chance, {percent(book['aligned'])} have rebuilt vectors, one a branch, that are each other's nearest."
    losses = [(epoch, one["alignment"]) for epoch, one in enumerate(book.get("losses") or [], 1) if is_number(one.get("alignment"))]
    drawn = charts.bars(groups, series, "Codes an item"), charts.line(losses, "Loss that aligns the branches", from_zero=True)
    cards = "".join(f'<div class="card">{chart}</div>' for chart in drawn if chart)
    return f'<h3>Codes by popularity</h3><p class="aside">{said}</p>{charts.legend(series)}<div class="pair">{cards}</div>'


def _examples(facts: dict) -> str:
    examples = facts.get("examples") or []
    cards = "".join(_example(example) for example in examples)
    return _section("Some users", cards) if cards else ""


def _example(example: dict) -> str:
    history, shown = [str(title) for title in example.get("history") or []], example.get("recommended") or []
    earlier, recent = history[:-SHOWN], history[-SHOWN:]
    folded = f"<details><summary>{len(earlier):,} earlier</summary>{_list(earlier, '')}</details>" if earlier else ""
    rows = "".join(
        f'<li{" class=hit" if one.get("hit") else ""}><span class="n">{at}</span><span>{escape(str(one["title"]))}'
        f'{" ✓" if one.get("hit") else ""}</span><span class="score">{_number(one.get("score"), 3)}</span></li>'
        for at, one in enumerate(shown, 1)
    )
    places = [at for at, one in enumerate(shown, 1) if one.get("hit")]
    targets = ", ".join(f"<b>{escape(str(title))}</b>" for title in example.get("targets") or [])
    if places:
        where = f'<span class="found">found at place {", ".join(map(str, places))}</span>'
    else:
        where = f"not among the first {len(shown)}"
    held = f'<p class="held">Held out: {targets} – {where}.</p>' if targets else ""
    return (
        f'<article class="card user"><h3>User {escape(str(example.get("user", "")))}</h3><div class="halves">'
        f"<div><h4>History, the latest last</h4>{folded}{_list(recent, '') if recent else '<p>none</p>'}</div>"
        f"<div><h4>Recommended, with scores</h4><ol>{rows}</ol></div></div>{held}</article>"
    )


def _settings(facts: dict) -> str:
    parts = []
    config = facts.get("config") or {}
    loose = {name: value for name, value in config.items() if not isinstance(value, dict)}
    sections = ({"": loose} if loose else {}) | {name: value for name, value in config.items() if isinstance(value, dict)}
    heads = {name: f"<h3>{escape(str(name))}</h3>" if name else "" for name in sections}
    blocks = "".join(f"<div>{heads[name]}{_pairs(values)}</div>" for name, values in sections.items() if values)
    if blocks:
        parts.append(f'<details><summary>Settings</summary><div class="settings">{blocks}</div></details>')
    seconds = facts.get("seconds")
    if isinstance(seconds, dict) and seconds:
        stages = {stage: duration(value) for stage, value in seconds.items() if is_number(value)}
        stages["together"] = duration(sum(value for value in seconds.values() if is_number(value)))
        parts.append(f'<details open><summary>Time</summary><div class="settings">{_pairs(stages)}</div></details>')
    elif is_number(seconds):
        parts.append(f'<p class="aside">It took {duration(seconds)}.</p>')
    if facts.get("environment"):
        parts.append(f'<details open><summary>Environment</summary><div class="settings">{_pairs(facts["environment"])}</div></details>')
    return _section("How it was made", "".join(parts)) if parts else ""


def _rows(metrics: dict, own: str | None, columns: list[tuple[int | str, list]], group: int = 0) -> str:
    """Table rows, a model each. columns: (digits, a value of each model); group: columns between lines, and then the best is bold."""
    body = ""
    for row, model in enumerate(metrics):
        cells = ""
        for at, (digits, values) in enumerate(columns):
            kinds = ["first"] if group and at % group == 0 else []
            known = [value for value in values if is_number(value)]
            if group and len(known) > 1 and values[row] == max(known) > 0:
                kinds.append("top")
            cells += f'<td class="{" ".join(kinds)}">{_number(values[row], digits)}</td>'
        body += f'<tr class="{"own" if model == own and len(metrics) > 1 else ""}"><th>{escape(model)}</th>{cells}</tr>'
    return body


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _table(head: str, body: str) -> str:
    return f'<div class="scroll" tabindex="0"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _figures(known: dict[str, Any], small: dict[str, str] | None = None) -> str:
    """Labels with large figures, some with a small line below."""
    if not known:
        return ""
    below = {label: f"<small>{escape(said)}</small>" for label, said in (small or {}).items()}
    cells = (f"<div><dt>{escape(str(label))}</dt><dd>{_plain(value)}{below.get(label, '')}</dd></div>" for label, value in known.items())
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _pairs(values: dict[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(str(label))}</dt><dd>{_plain(value)}</dd>" for label, value in values.items()) + "</dl>"


def _list(lines: list[Any], kind: str) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(str(line))}</li>" for line in lines) + "</ul>" if lines else ""


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "–" if value is None else str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _number(value: Any, digits: int | str) -> str:
    if not is_number(value):
        return "–"
    return percent(value) if digits == "percent" else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _label(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{name.capitalize() if name == 'recall' else name.upper()}@{k}"


def _term(name: str, shown: str | None = None) -> str:
    """A word with its explanation under the pointer."""
    return f'<abbr title="{escape(EXPLAINED[name])}">{escape(shown or name)}</abbr>'


def _slice_name(kind: str, name: str) -> str:
    unit = {"history": " items", "frequency": " times"}.get(kind, "")
    return {"mid": "middle", "cold_only": "cold among cold"}.get(name, name.replace("-", "–") + unit)
