"""Every setting, once: one frozen section a component, a `Recipe` of all sections, YAML in and YAML out.

A setting has one name in Python (`AsymRec(facets=32)`), on the command line (`--set facets=32`) and in YAML
(`quantizer: {facets: 32}`). Leaf names are unique over the sections, so the section may be left out.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asymrec.errors import ConfigError

PRESETS = {path.stem: path for path in sorted(Path(__file__).with_name("presets").glob("*.yaml"))}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataConfig(Section):
    """How the two tables are read and split."""

    user: str | None = Field(None, description="column of the user id; found by name when not given")
    item: str | None = Field(None, description="column of the item id; found by name when not given")
    time: str | None = Field(None, description="column of the timestamp; found by name when not given")
    position: str | None = Field(None, description="column of the place in the user's sequence; found by name when not given")
    drop_unknown: bool = Field(
        False, description="drop interactions with items that the item table does not hold, instead of refusing them"
    )
    split: Literal["leave-last-out", "time"] = Field("leave-last-out", description="how validation and test targets are cut off")
    validation_share: float = Field(
        0.1, gt=0, lt=0.5, description="split by time: share of the interactions, latest but the test's, for validation"
    )
    test_share: float = Field(0.1, gt=0, lt=0.5, description="split by time: share of the interactions, the latest, for the test")


class VectorsConfig(Section):
    """What an item's continuous vector is made of."""

    text: tuple[str, ...] | None = Field(
        None, description="item columns joined into the text; when not given: `text`, else title-like, then all other text; `[]` for none"
    )
    encoder: str = Field("minilm", description="`minilm`, `hashed` (no language model), a model folder, or a sentence-transformers name")
    views: tuple[str, ...] = Field((), description="further vectors: list columns of the item table, or .npy/.parquet/.safetensors files")
    max_tokens: int = Field(128, ge=8, description="tokens of the text that the encoder reads")


class QuantizerConfig(Section):
    """MHQ: M facets, L residual levels in each, K codewords a level."""

    facets: int = Field(16, ge=1, description="M, subspaces of the projected vector")
    levels: int = Field(3, ge=1, description="L, residual levels in each facet")
    codewords: int = Field(256, ge=2, le=65536, description="K, codewords in each codebook")
    projection: int | None = Field(
        None, ge=1, description="D, width after the projection W_P; by default min(1024, d), cut to a multiple of M"
    )
    whiten: bool = Field(False, description="whiten the vectors before the projection")
    reconstruct: Literal["projected", "input"] = Field(
        "projected", description="where the reconstruction error is taken: x~ = W_P x as in the paper, or x"
    )
    balance: float = Field(0.1, ge=0, description="lambda_bal: weight of the spread of energy over facets")
    orthonormality: float = Field(1.0, ge=0, description="lambda_reg: weight of ||W_P W_P^T - I||")
    decay: float = Field(0.99, gt=0, lt=1, description="gamma of the EMA codebooks")
    projection_rate: float = Field(1e-4, ge=0, description="learning rate of W_P; 0 keeps the start")
    quantizer_epochs: int = Field(5, ge=0, description="passes over the items after the k-means start")
    quantizer_batch: int = Field(1024, ge=1, description="items a step")
    distinct: bool = Field(True, description="repair identical ids so that each item has its own")


class NetworkConfig(Section):
    """MSP, the causal decoder and the heads."""

    width: int = Field(256, ge=8, description="d_model")
    layers: int = Field(2, ge=1, description="decoder blocks")
    heads: int = Field(4, ge=1, description="attention heads")
    ffn: int = Field(1024, ge=8, description="inner width of the feed-forward layers")
    dropout: float = Field(0.5, ge=0, lt=1, description="on embeddings, attention and feed-forward")
    experts: int = Field(3, ge=1, description="E, experts of MSP")
    inner: int = Field(64, ge=4, description="objective `heads`: inner width of each head")
    repeat: bool = Field(True, description="learn one number that is added to the logits of items already in the history")
    history: int = Field(50, ge=1, description="most recent items of a history that the model reads")


class TrainingConfig(Section):
    """The loop."""

    objective: Literal["catalogue", "heads"] = Field(
        "catalogue", description="softmax over items, or the paper's mean cross-entropy over the M*L heads"
    )
    mix: float = Field(0.0, ge=0, description="objective `catalogue`: weight of the heads' cross-entropy that is added")
    temperature: float = Field(0.07, gt=0, description="divides the cosine before the softmax")
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW, at the end of the warm-up; falls to 0 by half a cosine")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, on matrices")
    epochs: int | None = Field(
        None, ge=1, description="passes over the training interactions, at most; by default 12, up to 100 where that is under 800 steps"
    )
    patience: int = Field(4, ge=1, description="epochs without a better validation NDCG@10 before stopping")
    batch: int = Field(2048, ge=1, description="interactions a step")
    average: float = Field(0.995, ge=0, lt=1, description="decay of the moving average of weights that is validated and kept; 0: none")
    full_softmax: int = Field(50_000, ge=0, description="objective `catalogue`: above this many items the softmax is sampled")
    negatives: int = Field(8192, ge=1, description="items drawn a step where the softmax is sampled")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 autocast where the processor has it")
    device: str = Field("auto", description="auto, cpu, cuda, mps")
    seed: int = Field(0, ge=0, description="of everything that is drawn: equal seeds give equal models")


class Recipe(Section):
    """All sections: what a run folder keeps as `config.yaml`."""

    data: DataConfig = DataConfig()
    vectors: VectorsConfig = VectorsConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()

    @classmethod
    def of(cls, tree: dict[str, Any] | None = None, **settings: Any) -> Recipe:
        """A recipe from a tree of sections (as YAML has it) with single settings, by their leaf or dotted names, on top.

        Raises ConfigError: unknown key (the nearest is named), impossible value.
        """
        tree = {name: dict(section or {}) for name, section in (tree or {}).items() if isinstance(section or {}, dict)} | {
            name: section for name, section in (tree or {}).items() if not isinstance(section or {}, dict)
        }
        for name, value in settings.items():
            section, leaf = cls._place(name)
            tree.setdefault(section, {})[leaf] = value
        for section, values in tree.items():
            if section not in cls.model_fields:
                raise ConfigError(f"unknown section '{section}' in the configuration{_nearest(section, cls.model_fields)}")
            if not isinstance(values, dict):
                raise ConfigError(f"section '{section}' of the configuration must hold keys and values")
            known = cls.model_fields[section].annotation.model_fields
            for leaf in values:
                if leaf not in known:
                    raise ConfigError(f"unknown setting '{section}.{leaf}'{_nearest(leaf, cls.leaves())}")
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"setting '{'.'.join(map(str, first['loc']))}': {first['msg']} (got {first['input']!r})") from None

    @classmethod
    def read(cls, path: str | Path | None, **settings: Any) -> Recipe:
        """A recipe from a YAML file or a preset's name (None: the defaults) with single settings on top."""
        if path is None:
            return cls.of(None, **settings)
        path = _preset(path)
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if tree is not None and not isinstance(tree, dict):
            raise ConfigError(f"{path}: expected sections with keys, found {type(tree).__name__}")
        return cls.of(tree, **settings)

    @classmethod
    def leaves(cls) -> dict[str, str]:
        """Leaf name -> its section."""
        return {leaf: name for name, field in cls.model_fields.items() for leaf in field.annotation.model_fields}

    @classmethod
    def _place(cls, name: str) -> tuple[str, str]:
        if "." in name:
            section, leaf = name.split(".", 1)
            return section, leaf
        leaves = cls.leaves()
        if name not in leaves:
            raise ConfigError(f"unknown setting '{name}'{_nearest(name, leaves)}")
        return leaves[name], name

    def yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["facets=32", "training.epochs=5"]` -> `{"facets": 32, ...}`; values are read as YAML."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes key=value, not '{pair}'")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {name}: cannot read the value {value!r}") from None
    return settings


def _preset(path: str | Path) -> Path:
    """A bare name that is no file is a preset's. Raises ConfigError with the nearest."""
    name = str(path)
    if Path(path).exists() or Path(path).suffix or Path(path).name != name:
        return Path(path)
    if name not in PRESETS:
        raise ConfigError(f"no file and no preset '{name}'{_nearest(name, PRESETS)}")
    return PRESETS[name]


def reference() -> str:
    """docs/configuration.md: every section and setting with its default, range and meaning, as Markdown."""
    lines = [
        "# Settings",
        "",
        "Made by `python -m asymrec.config`. A setting has one name in Python (`AsymRec(facets=32)`), on the command line",
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


def _range(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    kinds = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text", "array": "list of text"}
    bounds = {"minimum": ">= ", "exclusiveMinimum": "> ", "maximum": "<= ", "exclusiveMaximum": "< "}
    words = []
    for part in schema.get("anyOf", [schema]):
        if part.get("type") != "null":
            words.append(", ".join(f"`{choice}`" for choice in part["enum"]) if "enum" in part else kinds[part["type"]])
            words += [f"{sign}{part[key]:,}" for key, sign in bounds.items() if key in part]
    return ", ".join(words)


def _nearest(name: str, known: Any) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else f"; known are {', '.join(known)}"


if __name__ == "__main__":
    print(reference(), end="")
