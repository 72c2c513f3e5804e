"""Small inline charts for the report: SVG and a grid of cells, coloured by the page's own style, so that both follow light and dark.

Charts are drawn 360 units wide, about a phone's width, so that text keeps a readable size there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 360
COLOURS = 5  # s0 .. s4 in the style sheet


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` steps of 1, 2 or 5 times a power of ten, the outermost just inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((s for s in (1, 2, 5, 10) if s * power >= rough), default=10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def line(points: Sequence[tuple[float, float]], title: str, from_zero: bool = False, mark: int | None = None) -> str:
    """A curve over epochs. points: (epoch, value), finite; mark: the epoch to point out. Empty for fewer than two points."""
    if len(points) < 2:
        return ""
    left, right, top, bottom, height = 44, 14, 30, 28, 210
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    if from_zero:
        low = min(0.0, low)
    if high == low:
        high, low = high + (abs(high) or 1) / 2, low - (abs(low) or 1) / 2
    high += (high - low) * 0.06
    span = (xs[-1] - xs[0]) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - xs[0]) / span * (WIDTH - left - right)
        return across, top + (high - y) / (high - low) * (height - top - bottom)

    parts = [_open(height, title), f'<text class="caption" x="0" y="13">{escape(title)}</text>']
    levels = ticks(low, high)
    digits = max(0, -math.floor(math.log10(levels[1] - levels[0]) + 1e-9)) if len(levels) > 1 else 3
    for value in levels:
        _, y = place(xs[0], value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - right}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>')
    parts.append(f'<text class="tick" x="{left - 7}" y="{height - bottom + 17}" text-anchor="end">epoch</text>')
    for epoch in sorted({round(value) for value in ticks(xs[0], xs[-1], 8)}):
        x, _ = place(epoch, low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - bottom + 17}" text-anchor="middle">{epoch}</text>')
    path = " ".join(f"{'M' if at == 0 else 'L'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(place(*point) for point in points))
    parts.append(f'<path class="curve" d="{path}"/>')
    for epoch, value in points:
        x, y = place(epoch, value)
        parts.append(f'<circle class="touch" cx="{x:.1f}" cy="{y:.1f}" r="7"><title>epoch {epoch:g}: {value:.4f}</title></circle>')
        if epoch == mark:
            parts.append(f'<path class="drop" d="M{x:.1f} {y:.1f}V{height - bottom}"/>')
            parts.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
            parts.append(f'<text class="note" x="{WIDTH - right}" y="13" text-anchor="end">best {value:.4f}, epoch {epoch:g}</text>')
    return "".join([*parts, "</svg>"])


def bars(groups: Sequence[tuple[str, str, Sequence[float | None]]], series: Sequence[str], title: str) -> str:
    """Horizontal bars. groups: (label, second label, a value of each series or None). The series' colours are s0, s1, ... of the page."""
    values = [value for _, _, row in groups for value in row if value is not None]
    if not values:
        return ""
    left, right, top, thick, gap = 118, 50, 28, 13, 14
    block = max(len(series) * (thick + 2), 30) + gap
    height, most = top + len(groups) * block - gap + 4, max(values) or 1
    parts = [_open(height, title), f'<text class="caption" x="0" y="13">{escape(title)}</text>']
    for at, (label, second, row) in enumerate(groups):
        y = top + at * block
        middle = y + (block - gap) / 2
        parts.append(f'<text class="label" x="{left - 10}" y="{middle - 2:.1f}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<text class="tick" x="{left - 10}" y="{middle + 12:.1f}" text-anchor="end">{escape(second)}</text>')
        parts.append(f'<path class="grid" d="M{left} {y - 3}v{block - gap + 4}"/>')
        y += (block - gap - len(series) * (thick + 2)) / 2
        for number, (name, value) in enumerate(zip(series, row)):
            bar = y + number * (thick + 2)
            if value is None:
                parts.append(f'<text class="tick" x="{left + 6}" y="{bar + thick - 2:.1f}">–</text>')
                continue
            wide = value / most * (WIDTH - left - right)
            parts.append(
                f'<rect class="s{number % COLOURS}" x="{left}" y="{bar:.1f}" width="{max(wide, 1):.1f}" height="{thick}" rx="2">'
                f"<title>{escape(name)}, {escape(label)}: {value:.4f}</title></rect>"
                f'<text class="value" x="{left + wide + 5:.1f}" y="{bar + thick - 2.5:.1f}">{value:.4f}</text>'
            )
    return "".join([*parts, "</svg>"])


def legend(series: Sequence[str]) -> str:
    keys = "".join(f'<li><span class="key s{number % COLOURS}"></span>{escape(name)}</li>' for number, name in enumerate(series))
    return f'<ul class="legend">{keys}</ul>'


def heat(
    perplexity: Sequence[Sequence[float]],
    dead: Sequence[Sequence[int]] | None,
    codewords: int,
    r2: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> str:
    """Facets across, levels down: how much of each codebook is used. perplexity, dead: [facets][levels]; r2: after each level; names:
    of the facets."""
    facets, levels = len(perplexity), len(perplexity[0])
    names = [escape(name) for name in names] if names else [f"facet {facet + 1}" for facet in range(facets)]
    rows = []
    for level in range(levels):
        cells = []
        for facet in range(facets):
            value = perplexity[facet][level]
            said = f"{names[facet]}, level {level + 1}: perplexity {value:.1f} of {codewords}"
            if dead is not None:
                said += f", {dead[facet][level]} unused"
            kind = "cell dead" if value < 2 else "cell"
            cells.append(f'<i class="{kind}" style="--v:{min(value / codewords, 1):.3f}" title="{said}"></i>')
        mean = sum(perplexity[facet][level] for facet in range(facets)) / facets
        unused = "" if dead is None else f"{sum(dead[facet][level] for facet in range(facets)):,} unused"
        rows.append(
            f'<div class="heat-label">level {level + 1}{"" if r2 is None else f"<br><small>R² {r2[level]:.3f}</small>"}</div>'
            f'<div class="cells" style="grid-template-columns:repeat({facets},1fr)">{"".join(cells)}</div>'
            f'<div class="heat-sum">mean {mean:.0f}<br><small>{unused}</small></div>'
        )
    scale = f'<div class="scale"><span>1</span><b></b><span>{codewords} codewords used alike</span></div>'
    head = f'<div></div><div class="heat-head"><span>{names[0]}</span><span>{names[-1]}</span></div><div></div>' if facets > 1 else ""
    return f'<div class="heat" role="img" aria-label="Perplexity of every codebook">{head}{"".join(rows)}</div>{scale}'


def _open(height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
