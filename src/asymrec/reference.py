"""Makes docs/configuration.md out of the settings themselves: `python -m asymrec.reference`."""

from __future__ import annotations

import json
from typing import Any

import yaml

from asymrec.config import PRESETS, Recipe
from asymrec.models import MODELS


def reference() -> str:
    """docs/configuration.md: every section and setting with its default, range and meaning, as Markdown."""
    lines = [
        "# Settings",
        "",
        "Made by `python -m asymrec.reference`. A setting has one name in Python (`AsymRec(facets=32)`), on the command line",
        "(`--set facets=32`, or `--set quantizer.facets=32`) and in a YAML file (`--config FILE`):",
        "",
        "```yaml",
        "quantizer: {facets: 32}",
        "training:",
        "  epochs: 40",
        "```",
        "",
        "`--set` goes over `--config`, `--config` over the defaults. A run keeps all of them in its `config.yaml`, which is itself a",
        "file for `--config`. An unknown setting is refused, and the nearest is named.",
        "",
        "Presets: `--config NAME` with a bare name takes one of " + ", ".join(f"`{name}`" for name in PRESETS) + ".",
        "",
        "Some models have defaults of their own, each chosen once for all data:",
        "",
        "| model | setting: default |",
        "|---|---|",
        *(f"| `{name}` | {own} |" for name, model in MODELS.items() if (own := _own(model.defaults))),
    ]
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        lines += ["", f"## {name}", "", *filter(None, [(section.__doc__ or "").strip()]), ""]
        schemas = section.model_json_schema()["properties"]
        lines += ["| setting | default | range | meaning |", "|---|---|---|---|"]
        for leaf, value in section.model_fields.items():
            default = yaml.safe_dump(section().model_dump(mode="json")[leaf], default_flow_style=True).splitlines()[0]
            lines.append(f"| `{leaf}` | `{default}` | {_range(schemas[leaf])} | {(value.description or '').replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def _own(defaults: dict[str, Any]) -> str:
    return ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in defaults.items())


def _range(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    kinds = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text", "object": "settings"}
    kinds["array"] = f"list of {kinds.get(schema.get('items', {}).get('type'), 'text')}"
    bounds = {"minimum": ">= ", "exclusiveMinimum": "> ", "maximum": "<= ", "exclusiveMaximum": "< "}
    words = []
    for part in schema.get("anyOf", [schema]):
        if part.get("type") != "null":
            words.append(", ".join(f"`{choice}`" for choice in part["enum"]) if "enum" in part else kinds[part["type"]])
            words += [f"{sign}{part[key]:,}" for key, sign in bounds.items() if key in part]
    return ", ".join(words)


if __name__ == "__main__":
    print(reference(), end="")
