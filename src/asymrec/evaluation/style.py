"""The look of the report: one style sheet, light and dark, from a phone's width up. No font, image or script is fetched."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d2126; --soft: #5b636d; --line: #e3e1dc; --tint: #f1f5f8;
  --s0: #1f6f9f; --s1: #d08c3a; --s2: #9aa1a9; --s3: #7a8f4e; --s4: #8d6aa5; --good: #23744d; --good-tint: #e6f3ec; --bad: #b3402f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f25; --ink: #e6e8ea; --soft: #9aa3ad; --line: #2d333b; --tint: #20272f;
    --s0: #5eb0e0; --s1: #dca35c; --s2: #7c858f; --s3: #a3b876; --s4: #b597cc; --good: #6cc59a; --good-tint: #1c3229; --bad: #e58a7b;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; }
h1 { font: 600 2.1rem/1.15 Charter, "Iowan Old Style", Georgia, serif; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font: 600 1.35rem/1.2 Charter, "Iowan Old Style", Georgia, serif; margin: 3rem 0 .4rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 .4rem; }
h3 small { font-weight: 400; }
p { margin: .4rem 0 .8rem; max-width: 44rem; }
.by { color: var(--soft); margin: 0; }
.lead { font-size: 1.12rem; line-height: 1.6; margin: 1.4rem 0 0; padding: 1.1rem 1.3rem; max-width: none; background: var(--card);
  border: 1px solid var(--line); border-left: 4px solid var(--s0); border-radius: 6px; }
.aside { color: var(--soft); font-size: .92rem; }
small { font-size: .82em; color: var(--soft); }
a { color: var(--s0); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1rem; margin: 1.2rem 0; padding: 0; }
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.facts dd small { display: block; font-weight: 400; font-size: .82rem; }
.notes { margin: .8rem 0 0; padding-left: 1.2rem; color: var(--soft); font-size: .92rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; text-align: right; white-space: nowrap; }
th { font-weight: 500; color: var(--soft); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
thead tr:last-child th { border-bottom: 1px solid var(--line); }
tbody tr + tr th, tbody tr + tr td { border-top: 1px solid var(--line); }
tbody th { color: var(--ink); }
.first { border-left: 1px solid var(--line); }
td.top { font-weight: 700; }
tr.own th, tr.own td { background: var(--tint); }
th.group { text-align: center; color: var(--ink); font-weight: 600; padding-bottom: 0; }
abbr { text-decoration: underline dotted var(--soft) 1px; text-underline-offset: 3px; cursor: help; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.2rem; align-items: start;
  margin-top: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 1rem 1.1rem; min-width: 0; }
svg { display: block; width: 100%; height: auto; font-family: inherit; overflow: visible; }
svg text { fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .caption { font-weight: 600; font-size: 13px; }
svg .tick, svg .note { fill: var(--soft); font-size: 11px; }
svg .note { fill: var(--ink); }
svg .value { font-size: 11px; }
svg .grid { stroke: var(--line); fill: none; }
svg .curve { stroke: var(--s0); stroke-width: 2; fill: none; stroke-linejoin: round; }
svg .best { fill: var(--s0); stroke: var(--card); stroke-width: 2; }
svg .drop { stroke: var(--soft); stroke-dasharray: 2 3; fill: none; }
svg .touch { fill: transparent; }
svg .s0, .key.s0 { fill: var(--s0); background: var(--s0); }
svg .s1, .key.s1 { fill: var(--s1); background: var(--s1); }
svg .s2, .key.s2 { fill: var(--s2); background: var(--s2); }
svg .s3, .key.s3 { fill: var(--s3); background: var(--s3); }
svg .s4, .key.s4 { fill: var(--s4); background: var(--s4); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: .8rem 0 0; font-size: .9rem; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .45rem; vertical-align: -1px; }
.heat { display: grid; grid-template-columns: auto 1fr auto; gap: .35rem .8rem; align-items: center; }
.heat-label, .heat-sum { font-size: .85rem; white-space: nowrap; font-variant-numeric: tabular-nums; line-height: 1.25; }
.heat-head { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
.cells { display: grid; gap: 2px; min-width: 0; }
.cell { height: 2.1rem; border-radius: 2px; background: color-mix(in srgb, var(--s0) calc(6% + 94% * var(--v)), var(--card)); }
.cell.dead { background: var(--bad); }
.scale { display: flex; align-items: center; gap: .5rem; margin-top: .8rem; font-size: .8rem; color: var(--soft); }
.scale b { width: 8rem; height: .55rem; border-radius: 2px;
  background: linear-gradient(90deg, color-mix(in srgb, var(--s0) 6%, var(--card)), var(--s0)); }
.user { margin-top: 1.2rem; }
.user h3 { margin: 0 0 .7rem; }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: .8rem 2rem; }
.halves h4 { margin: 0 0 .3rem; font-size: .82rem; font-weight: 500; color: var(--soft); }
.halves ul, .halves ol { margin: 0; padding: 0; list-style: none; font-size: .92rem; line-height: 1.4; }
.halves li { padding: .18rem .45rem; margin: 0 -.45rem; overflow-wrap: anywhere; }
.halves ol li { display: grid; grid-template-columns: 1.5rem 1fr auto; gap: .4rem; }
.halves ol .n, .halves ol .score { color: var(--soft); font-variant-numeric: tabular-nums; }
li.hit { background: var(--good-tint); border-radius: 4px; font-weight: 600; }
li.hit .score { color: var(--good); }
.found { color: var(--good); }
.halves details { margin: 0; font-size: .92rem; }
.held { margin: .8rem 0 0; padding-top: .6rem; border-top: 1px solid var(--line); font-size: .92rem; max-width: none; }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 500; }
details dl { display: grid; grid-template-columns: minmax(7rem, auto) 1fr; gap: .3rem 1.2rem; font-size: .92rem; margin: .8rem 0; }
details dt { color: var(--soft); }
details dd { margin: 0; overflow-wrap: anywhere; }
.settings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 0 2rem; }
.settings dl { font-variant-numeric: tabular-nums; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .88rem; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.7rem; }
  .lead { font-size: 1.03rem; padding: .9rem 1rem; }
  .card { padding: .8rem; }
  .cells { gap: 1px; }
  .heat { gap: .35rem .5rem; }
  details dl { grid-template-columns: 1fr; gap: 0; }
  details dd { margin-bottom: .5rem; }
  .settings details dl, .settings dl { grid-template-columns: minmax(7rem, auto) 1fr; }
}
@media print { body { background: #fff; } details { display: block; } .scroll { overflow: visible; } }
"""
