"""The report's opening paragraph: what the numbers say, in plain words, whoever wins."""

from __future__ import annotations

from typing import Any

GROUPS = {"head": "the most popular items", "mid": "the middle", "tail": "the long tail", "cold": "items never seen in training"}
ENOUGH = 30  # users below which a slice is not worth a sentence


def summary(facts: dict[str, Any]) -> str:
    """A paragraph from the facts of `report.write_report`; plain text, not yet escaped; empty when there are no metrics."""
    metrics, own = facts.get("metrics") or {}, own_model(facts)
    if not own:
        return ""
    protocol = protocols(metrics)[0]
    k = headline_k(metrics)
    recall, ndcg = f"recall@{k}", f"ndcg@{k}"
    mine = metrics[own][protocol]
    others = {name: found[protocol] for name, found in metrics.items() if name != own and protocol in found}
    sentences = [_opening(facts, own, metrics[own], mine[recall], k)]
    if others:
        sentences.append(_against(facts, mine, others, ndcg, k, protocol))
    if protocol == "kept" and "removed" in metrics[own]:
        sentences.append(_removed(metrics, own, ndcg))
    sentences += [_reach(mine, k), _weak(metrics[own], protocol, ndcg), _codes(facts.get("codebook")), _training(facts)]
    return " ".join(sentence for sentence in sentences if sentence)


def own_model(facts: dict[str, Any]) -> str | None:
    """The model that the report is about: `facts["model"]`, else the first."""
    metrics = facts.get("metrics") or {}
    return facts["model"] if facts.get("model") in metrics else next(iter(metrics), None)


def protocols(metrics: dict[str, Any]) -> list[str]:
    """The protocols that every model was evaluated under."""
    return [name for name in ("kept", "removed") if all(name in found for found in metrics.values())]


def cutoffs(metrics: dict[str, Any]) -> list[int]:
    """Every k that all models have."""
    protocol = protocols(metrics)[0]
    each = [{int(name.split("@")[1]) for name in found[protocol] if name.startswith("ndcg@")} for found in metrics.values()]
    return sorted(set.intersection(*each))


def headline_k(metrics: dict[str, Any]) -> int:
    """10 where it was measured, as the literature has it."""
    ks = cutoffs(metrics)
    return 10 if 10 in ks else ks[len(ks) // 2]


def percent(value: float) -> str:
    """0.0789 -> "7.9 %"; small shares keep two digits that count."""
    value *= 100
    return f"{value:.0f} %" if abs(value) >= 99.95 or value == 0 else f"{value:.1f} %" if abs(value) >= 1 else f"{value:.2g} %"


def _opening(facts: dict, own: str, found: dict, recall: float, k: int) -> str:
    data = facts.get("dataset") or {}
    name, part = data.get("name"), "the validation part of " if data.get("part") == "validation" else ""
    place = f"On {part}{name}, {own}" if name else own
    users, among = f"{found['users']:,} users", f"among its first {k} of {found['items']:,}"
    if found["targets"] == found["users"]:
        return f"{place} puts the held-out item {among} for {percent(recall)} of {users}."
    return f"{place} puts {percent(recall)} of a user's held-out items {among}, on average over {users}."


def _against(facts: dict, mine: dict, others: dict, ndcg: str, k: int, protocol: str) -> str:
    rival = max(others, key=lambda name: others[name][ndcg])
    ours, theirs = mine[ndcg], others[rival][ndcg]
    figures = f"NDCG@{k} {ours:.4f} against {theirs:.4f}"
    known = [
        found
        for found in facts.get("comparisons") or []
        if found.get("baseline") == rival and found["metric"] == ndcg and found["history"] == protocol
    ]
    strongest = f"the strongest baseline, {rival}" if len(others) > 1 else rival
    if known and known[0]["low"] <= 0 <= known[0]["high"]:
        return f"Against {strongest}, the difference is within chance ({figures}; 95 % interval of the difference {_interval(known[0])})."
    if abs(ours - theirs) < 0.01 * max(ours, theirs, 1e-12):
        verdict = f"It is level with {strongest}"
    elif ours > theirs:
        verdict = f"It is ahead of {strongest}" + (f", by {_more(ours, theirs)}" if theirs else "")
    else:
        verdict = f"It does not reach {strongest}" + (f", which is better by {_more(theirs, ours)}" if ours else "")
    return f"{verdict} ({figures}" + (f"; 95 % interval of the difference {_interval(known[0])}" if known else "") + ")."


def _more(larger: float, smaller: float) -> str:
    return f"{100 * (larger / smaller - 1):.0f} %" if larger < 3 * smaller else f"a factor of {larger / smaller:.1f}"


def _interval(found: dict) -> str:
    return f"{found['low']:+.4f} to {found['high']:+.4f}".replace("-", "−")


def _removed(metrics: dict, own: str, ndcg: str) -> str:
    """Said when leaving seen items out changes who wins, or much."""
    if "removed" not in protocols(metrics):
        return ""
    kept, removed = metrics[own]["kept"][ndcg], metrics[own]["removed"][ndcg]
    winners = {protocol: max(metrics, key=lambda name: metrics[name][protocol][ndcg]) for protocol in ("kept", "removed")}
    if (winner := winners["removed"]) != winners["kept"]:
        return f"With items of the history removed from the lists, {winner} is the best ({metrics[winner]['removed'][ndcg]:.4f})."
    if kept and removed > 1.1 * kept:
        return f"With items of the history removed from the lists, {own} comes to {removed:.4f}."
    return ""


def _reach(mine: dict, k: int) -> str:
    if f"coverage@{k}" not in mine:
        return ""
    return f"Its lists of {k} reach {percent(mine[f'coverage@{k}'])} of the catalogue."


def _weak(found: dict, protocol: str, ndcg: str) -> str:
    slices = (found.get("slices") or {}).get("popularity", {})
    groups = {name: part[protocol][ndcg] for name, part in slices.items() if part["users"] >= ENOUGH}
    if len(groups) < 2 or not max(groups.values()):
        return ""
    best, worst = max(groups, key=groups.get), min(groups, key=groups.get)
    if groups[worst] > 0.8 * groups[best]:
        return "It does about as well on rare items as on popular ones."
    strong, weak = f"{GROUPS.get(best, best)} ({groups[best]:.4f})", f"{GROUPS.get(worst, worst)} ({groups[worst]:.4f})"
    return f"It is strongest on {strong} and weakest on {weak}."


def _codes(codebook: dict | None) -> str:
    if not codebook or "neighbour_recall" not in codebook:
        return ""
    dead = codebook.get("dead_codebooks")
    tail = "" if dead is None else "; no codebook is dead" if not dead else f"; {dead} codebook{'s are' if dead > 1 else ' is'} dead"
    return f"The discrete ids keep {percent(codebook['neighbour_recall'])} of each item's ten nearest neighbours{tail}."


def _training(facts: dict) -> str:
    curves, seconds = facts.get("curves") or [], facts.get("seconds")
    total = sum(seconds.values()) if isinstance(seconds, dict) else seconds
    if not curves:
        return ""
    best = best_epoch(curves)
    epochs = "1 epoch" if len(curves) == 1 else f"{len(curves)} epochs"
    kept = f" (the {ordinal(best)} was kept)" if best is not None else ""
    return f"Training ran {epochs}{kept}" + (f"; everything together took {duration(total)}." if total else ".")


def best_epoch(curves: list[dict]) -> int | None:
    """The epoch of the highest validation NDCG, the first of equals."""
    known = [point for point in curves if is_number(point.get("ndcg"))]
    return max(known, key=lambda point: (point["ndcg"], -point["epoch"]))["epoch"] if known else None


def ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
