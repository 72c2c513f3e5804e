"""Makes the reference pages out of the program itself: `python -m asymrec.reference docs` writes every page of `PAGES` there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from asymrec.config import PRESETS, Recipe, Section
from asymrec.models import MODELS
from asymrec.models.trained import Trained
from asymrec.ranking import schema
from asymrec.ranking.examples import ExamplesConfig
from asymrec.ranking.ranker import RankerConfig


def settings() -> str:
    """docs/configuration.md: every section and setting with its default, range and meaning, as Markdown."""
    lines = [
        "# Settings",
        "",
        "Made by `make docs`. A setting has one name in Python (`AsymRec(facets=32)`), on the command line",
        "(`--set facets=32`, or `--set quantizer.facets=32`) and in a YAML file (`--config FILE`):",
        "",
        "```yaml",
        "quantizer: {facets: 32}",
        "training:",
        "  epochs: 40",
        "```",
        "",
        "`--set` goes over `--config`, `--config` over the defaults. A run keeps all of them in its `config.yaml`, which is itself a",
        "file for `--config`. An unknown setting is refused, and the nearest is named. Rankers have [settings of their own](#rankers).",
        "Where the models of a setting are named, it means nothing to the others: a fit that is given it says so and goes on. A fusion",
        "uses what its parts do.",
        "",
        "Some models have defaults of their own, each chosen once for all data; `objective` is one of those that the model can learn by:",
        "",
        "| model | setting: default | `objective` |",
        "|---|---|---|",
        *(f"| `{name}` | {_own(model.defaults)} | {_objectives(model)} |" for name, model in MODELS.items()),
        "",
        "Presets, for `--config NAME`:",
        "",
        "| preset | | sets |",
        "|---|---|---|",
        *(_preset(name, path) for name, path in PRESETS.items()),
    ]
    for name, field in Recipe.model_fields.items():
        lines += ["", f"## {name}", "", *_table(field.annotation, users=name not in ("data", "fusion"))]
    lines += [
        "",
        "## Rankers",
        "",
        "Of `asymrec rank fit --set KEY=VALUE` and `asymrec pipeline fit --rank-set KEY=VALUE`; in Python `TokenFormer(schema, epochs=5)`.",
        "",
        *_table(RankerConfig, titled=False),
        "",
        "How `asymrec rank fit --examples KEY=VALUE` makes examples; in Python `ExamplesConfig`.",
        "",
        *_table(ExamplesConfig, titled=False),
        "",
        "What a ranker reads, a YAML file for `--schema`; `asymrec rank schema DATA` prints a start.",
        "",
        "```yaml",
        *(line.removeprefix("    ") for line in schema.__doc__.splitlines() if line.startswith("    ")),
        "```",
    ]
    for each in (schema.Field, schema.History, schema.Label):
        lines += ["", *_table(each)]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """docs/commands.md: every command with its arguments and options, as Markdown."""
    from typer import Context
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from asymrec.cli import app

    command = get_command(app)
    page = get_docs_for_click(obj=command, ctx=Context(command), name="asymrec", title="Commands")
    intro = "Made by `make docs` out of what `--help` prints. What the commands are for stands in the [README](../README.md)."
    page = page.replace("# Commands\n", f"# Commands\n\n{intro}\n", 1)
    return re.sub(r"\n{3,}", "\n\n", page.replace("* `--help`: Show this message and exit.\n", "")).rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {"configuration.md": settings, "commands.md": commands}


def _table(section: type[Section], titled: bool = True, users: bool = False) -> Iterator[str]:
    """A section's purpose and its settings; with the models that they mean something to, once where these are always the same."""
    if titled and section.__doc__:
        yield from (section.__doc__.strip(), "")
    schemas, models = section.model_json_schema()["properties"], {leaf: _users(leaf) for leaf in section.model_fields} if users else {}
    if users and len(set(models.values())) == 1:
        yield from (f"Models: {next(iter(models.values()))}.", "")
        users = False
    yield from ("| setting | default | range | meaning |" + " models |" * users, "|---|---|---|---|" + "---|" * users)
    for leaf, value in section.model_fields.items():
        default = "needed" if value.is_required() else f"`{_yaml(value.get_default(call_default_factory=True))}`"
        meaning = (value.description or "").replace("|", "&#124;")
        yield f"| `{leaf}` | {default} | {_range(schemas[leaf])} | {meaning} |" + (f" {models[leaf]} |" if users else "")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).splitlines()[0]


def _own(defaults: dict[str, Any]) -> str:
    return ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in defaults.items())


def _users(leaf: str) -> str:
    """The models that a setting means something to, those of a family by the family's name."""
    users = [name for name, model in MODELS.items() if leaf in model.uses]
    families = {"all": set(MODELS), "all that train": {name for name, model in MODELS.items() if issubclass(model, Trained)}}
    for family, names in families.items():
        if names <= set(users):
            return ", ".join([family, *(f"`{name}`" for name in users if name not in names)])
    return ", ".join(f"`{name}`" for name in users)


def _objectives(model: type) -> str:
    return ", ".join(f"`{name}`" for name in getattr(model, "objectives", ()))


def _preset(name: str, path: Path) -> str:
    """A row: the file's first comment, and its sections."""
    text = path.read_text(encoding="utf-8")
    sets = yaml.safe_dump(yaml.safe_load(text), default_flow_style=True, sort_keys=False, width=1000).strip()[1:-1]
    return f"| `{name}` | {text.splitlines()[0].removeprefix('# ')} | `{sets}` |"


def _range(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    kinds = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text", "object": "settings"}
    kinds["array"] = f"list of {kinds.get(schema.get('items', {}).get('type'), 'text')}"
    bounds = {"minimum": ">= ", "exclusiveMinimum": "> ", "maximum": "<= ", "exclusiveMaximum": "< ", "multipleOf": "a multiple of "}
    words = []
    for part in schema.get("anyOf", [schema]):
        if part.get("type") != "null":
            words.append(", ".join(f"`{choice}`" for choice in part["enum"]) if "enum" in part else kinds[part["type"]])
            words += [f"{sign}{part[key]:,}" for key, sign in bounds.items() if key in part]
    return ", ".join(words)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m asymrec.reference FOLDER")
    for name, page in PAGES.items():
        Path(sys.argv[1], name).write_text(page(), encoding="utf-8")
