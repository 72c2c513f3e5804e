"""Every setting, once: one frozen section a component, a `Recipe` of all sections, YAML in and YAML out.

A setting has one name in Python (`AsymRec(facets=32)`), on the command line (`--set facets=32`) and in YAML
(`quantizer: {facets: 32}`). Leaf names are unique over the sections, so the section may be left out.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

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
    drop_duplicates: bool = Field(False, description="drop interactions whose user, item and time an earlier row has, instead of telling")
    drop_incomplete: bool = Field(False, description="drop interactions without a user, item, time or position, instead of refusing them")
    split: Literal["leave-last-out", "untied", "time"] = Field(
        "leave-last-out", description="how validation and test targets are cut off; `untied`: the last time step of each user is the target"
    )
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
    collaborative: int = Field(0, ge=0, multiple_of=2, description="width of a further view, made from the training interactions; 0: none")
    max_tokens: int = Field(128, ge=8, description="tokens of the text that the encoder reads")


class QuantizerConfig(Section):
    """MHQ: M facets, L residual levels in each, K codewords a level."""

    facets: int = Field(16, ge=1, description="M, subspaces of the projected vector; asymrec: the default is fewer for narrow vectors")
    levels: int = Field(3, ge=1, description="L, residual levels in each facet")
    codewords: int = Field(256, ge=2, le=65536, description="K, codewords in each codebook, at most")
    items_per_codeword: int = Field(
        40,
        ge=4,
        description="items that a codeword stands for, at least, on the average of all; 16 codewords may have fewer, down to 4",
        json_schema_extra={"before": 4},
    )
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


class OPQConfig(Section):
    """RPG's codes: optimized product quantization."""

    opq_codes: int = Field(32, ge=1, description="codes an item; fewer where the vectors are narrower")
    opq_codewords: int = Field(256, ge=2, le=65536, description="codewords in each codebook")
    opq_components: int | None = Field(None, ge=1, description="components kept, whitened; by default all, cut to a multiple of the codes")
    opq_rounds: int = Field(20, ge=0, description="rounds of codebooks and rotation; 0: no rotation, plain product quantization")


class RQVAEConfig(Section):
    """TIGER's codes: a residual-quantized autoencoder, and one more code where items would share the others."""

    rqvae_levels: int = Field(3, ge=1, description="residual levels")
    rqvae_codewords: int = Field(256, ge=2, le=65536, description="codewords a level")
    latent: int = Field(32, ge=1, description="width of what is quantized")
    hidden: tuple[PositiveInt, ...] = Field((512, 256, 128), description="widths of the encoder's layers, backwards of the decoder's")
    commitment: float = Field(0.25, ge=0, description="beta: weight of the commitment loss")
    rqvae_epochs: int | None = Field(None, ge=0, description="passes over the items; by default as many as make 4,000 steps")
    rqvae_batch: int = Field(256, ge=1, description="items a step")
    rqvae_rate: float = Field(2e-3, gt=0, description="learning rate of AdamW")


class FlexCodeConfig(Section):
    """FlexCode: a semantic and a collaborative codebook, and the router that splits an item's codes between them.

    flexcode: the budget of codes an item is `rqvae_levels`, both branches take their other settings from section `rqvae`.
    asymrec+collaborative: facets are split, of the MHQs of section `quantizer`; `staged`, `router_epochs` and `alignment` play no part.
    """

    allocation: Literal["router", "fixed", "semantic", "collaborative"] = Field(
        "router", description="who splits the codes: the router, item by item; `fixed_share` for all; all to one branch"
    )
    fixed_share: float = Field(
        0.5, ge=0, le=1, description="the collaborative share with allocation=fixed; of an odd number of codes half is one more"
    )
    collaborative_source: Literal["linear", "sasrec"] = Field(
        "linear", description="what the collaborative vectors are made by: a factorization of neighbours' counts, or a SASRec"
    )
    collaborative_width: int = Field(64, ge=2, multiple_of=2, description="width of the collaborative vectors")
    staged: bool = Field(True, description="the branches first, then the router with all; or all losses from the start")
    router_epochs: int | None = Field(None, ge=0, description="passes over the items with the router; by default half of `rqvae_epochs`")
    alignment: float = Field(0.1, ge=0, description="weight of the loss that brings an item's two branches together; 0: none")
    alignment_temperature: float = Field(0.07, gt=0, description="of that loss")
    router_share: float = Field(0.5, gt=0, lt=1, description="the collaborative share of all codes that the balance asks for")
    router_balance: float = Field(1.0, ge=0, description="weight of the loss that keeps the shares of all codes near `router_share`")
    router_smoothness: float = Field(1.0, ge=0, description="weight of the loss that gives items of like popularity a like split")


class NetworkConfig(Section):
    """How items are read, the Transformer and the heads."""

    width: int = Field(256, ge=8, description="d_model")
    layers: int = Field(2, ge=1, description="decoder blocks")
    heads: int = Field(4, ge=1, description="attention heads")
    ffn: int = Field(1024, ge=8, description="inner width of the feed-forward layers")
    dropout: float = Field(0.5, ge=0, lt=1, description="on embeddings, attention and feed-forward")
    head_width: int | None = Field(None, ge=1, description="width of an attention head; by default width / heads")
    read: Literal["vectors", "codes", "both"] = Field(
        "both", description="asymrec: an item is read as its vector (MSP), as its codes, or as the sum of both"
    )
    codeword_map: bool = Field(
        True,
        description="asymrec, objective `catalogue`: a linear map of the codeword is added to a code's learned embedding",
        json_schema_extra={"before": False},
    )
    code_rate: float = Field(
        0.3,
        gt=0,
        description="asymrec, objective `catalogue`: what stored embeddings and biases of the content's codes are multiplied with; "
        "the less, the slower they learn beside the map",
        json_schema_extra={"before": 1.0},
    )
    popularity_codes: bool = Field(
        True,
        description="asymrec with a softmax over items, sasrec+content: codes of how often, and since when, an item was taken",
        json_schema_extra={"before": False},
    )
    time_codes: bool = Field(
        True,
        description="asymrec, sasrec+content: read when a history's last item was taken: which 32nd, and which 256th, of training's times",
        json_schema_extra={"before": False},
    )
    write: Literal["codes", "vectors"] = Field("codes", description="asymrec: what is written: the item's codes, or its vector")
    experts: int = Field(3, ge=1, description="E, experts of MSP")
    expert_width: int | None = Field(None, ge=1, description="inner width of each expert; by default d_model")
    inner: int = Field(64, ge=4, description="objective `heads`: inner width of each head")
    linear_heads: bool = Field(False, description="objective `heads`: linear heads instead of two-layer ones")
    repeat: bool = Field(True, description="add one number to the logits of items already in the history, fitted on validation each epoch")
    history: int | None = Field(
        None, ge=1, description="most recent items of a history that the model reads; by default what holds 95 % of the users, 50 to 200"
    )
    tree_softmax: bool = Field(
        True,
        description="tiger, flexcode: the softmax of a code runs over the codes that some item has after those before it; "
        "false: over all codewords of its place",
        json_schema_extra={"before": False},
    )
    beam: int = Field(50, ge=1, description="tiger, flexcode: sequences of codes kept while an item is written")


class DecodingConfig(Section):
    """How RPG finds items by their codes."""

    decode: Literal["exact", "graph"] = Field(
        "exact", description="score every item; or search a graph of similar items, where what is not visited is never recommended"
    )
    graph_neighbours: int = Field(50, ge=1, description="items that each item points to")
    graph_beam: int = Field(50, ge=1, description="items kept from step to step, and drawn to start with")
    graph_steps: int = Field(5, ge=1, description="how often the neighbours of the items kept are scored")


class TrainingConfig(Section):
    """The loop."""

    objective: Literal["catalogue", "heads", "gbce"] = Field(
        "catalogue",
        description="softmax over items; mean cross-entropy over the heads of the codes; gSASRec's binary one over sampled items",
    )
    mix: float = Field(0.0, ge=0, description="objective `catalogue`: weight of the heads' cross-entropy that is added")
    temperature: float | None = Field(0.07, gt=0, description="divides the cosine before the softmax; null: inner products, no cosine")
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW, at the end of the warm-up; falls to 0 by half a cosine")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, on matrices")
    epochs: int | None = Field(
        None,
        ge=1,
        description="passes over the training interactions, at most; by default the model's: 20 of asymrec, 12 of most, more of few steps",
    )
    patience: int = Field(4, ge=1, description="epochs without a better validation NDCG@10 before stopping")
    batch: int = Field(2048, ge=1, description="interactions a step")
    average: float = Field(0.995, ge=0, lt=1, description="decay of the moving average of weights that is validated and kept; 0: none")
    full_softmax: int = Field(50_000, ge=0, description="objective `catalogue`: above this many items the softmax is sampled")
    negatives: int = Field(8192, ge=1, description="items drawn a step where the softmax is sampled; objective `gbce`: for each target")
    calibration: float = Field(0.75, ge=0, le=1, description="objective `gbce`: t, 0 is plain binary cross-entropy, 1 undoes the sampling")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where the processor multiplies it faster")
    device: str = Field("auto", description="auto, cpu, cuda, mps")
    seed: int = Field(0, ge=0, lt=1 << 63, description="of everything that is drawn: equal seeds give equal models")


class ClassicConfig(Section):
    """Models that count instead of training: itemknn, counts, ease."""

    recency: float = Field(0.8, gt=0, le=1, description="an item of the history weighs less by this factor for each one after; 1: alike")
    neighbours: int = Field(200, ge=1, description="itemknn: most similar items kept of each item")
    window: int = Field(50, ge=1, description="counts: how far apart in a history two items are a pair")
    gap: float = Field(0.9, gt=0, le=1, description="counts: a pair counts less by this factor for every item between the two")
    discount: float = Field(0.3, ge=0, le=1, description="counts: power of both items' counts that a pair's is divided by")
    directed: bool = Field(True, description="counts: a before b is another pair than b before a")
    ridge: float = Field(500.0, gt=0, description="ease: L2 weight")


class FusionConfig(Section):
    """Several models as one."""

    parts: tuple[str, ...] = Field(
        ("asymrec", "counts"), min_length=1, description="models to fit; `name:preset` takes a preset's settings for that part"
    )
    fuse: Literal["weights", "ranks"] = Field(
        "weights", description="product of the parts' distributions, weights chosen on validation; or reciprocal ranks, 1 / (50 + rank)"
    )
    part_settings: tuple[dict[str, Any], ...] = Field((), description="every setting of each part; filled in, not to be set")


class Recipe(Section):
    """All sections: what a run folder keeps as `config.yaml`."""

    data: DataConfig = DataConfig()
    vectors: VectorsConfig = VectorsConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    opq: OPQConfig = OPQConfig()
    rqvae: RQVAEConfig = RQVAEConfig()
    flexcode: FlexCodeConfig = FlexCodeConfig()
    network: NetworkConfig = NetworkConfig()
    decoding: DecodingConfig = DecodingConfig()
    training: TrainingConfig = TrainingConfig()
    classic: ClassicConfig = ClassicConfig()
    fusion: FusionConfig = FusionConfig()

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
            raise ConfigError(
                f"setting '{'.'.join(map(str, first['loc']))}': {first['msg'].replace('a valid tuple', 'a list')} (got {first['input']!r})"
            ) from None

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

    def over(self, other: Recipe) -> Recipe:
        """What is set here on top of what is set in another; all else at its default, and not set."""
        tree = other.model_dump(exclude_unset=True)
        for section, values in self.model_dump(exclude_unset=True).items():
            tree[section] = tree.get(section, {}) | values
        return Recipe.of(tree)

    @classmethod
    def leaves(cls) -> dict[str, str]:
        """Leaf name -> its section."""
        return {leaf: name for name, field in cls.model_fields.items() for leaf in field.annotation.model_fields}

    @classmethod
    def leaves_of(cls, *sections: str) -> frozenset[str]:
        """All leaf names of some sections."""
        return frozenset(leaf for name in sections for leaf in cls.model_fields[name].annotation.model_fields)

    @classmethod
    def before(cls) -> dict[str, Any]:
        """Leaf name -> what runs were like that do not name it, of settings whose default is not what was before there were such."""
        fields = (field for section in cls.model_fields.values() for field in section.annotation.model_fields.items())
        return {leaf: field.json_schema_extra["before"] for leaf, field in fields if field.json_schema_extra}

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


def _nearest(name: str, known: Any) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else f"; known are {', '.join(known)}"
