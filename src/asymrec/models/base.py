"""The contract of every recommender, and what all share: users' own ids at the edge, a run folder's model files.

A model writes `_fit`, `scores`, `tensors` and `restore`. scikit-learn's manners: the constructor stores the settings, `fit`
returns self and forgets any earlier fit, equal seeds give equal models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asymrec.config import Recipe
from asymrec.data import Dataset, Sequences, Split
from asymrec.errors import ConfigError, PlacingError, RunError
from asymrec.files import atomic, checksum, recover
from asymrec.retrieval.exact import top_k
from asymrec.version import __version__

FORMAT = 2  # of a run folder; raise it with every change that an older reader would misread
SCORES_AT_ONCE = 1 << 26  # users x items whose scores exist at one time: 256 MiB
HISTORIES_AT_ONCE = 1024  # histories read together: what a network makes of them takes memory too, however few the items are

MODELS: dict[str, type[Recommender]] = {}


class Recommender:
    """Base of the models.

    Args:
        recipe: all settings; or
        settings: single ones by name, as `--set` takes them. Raises ConfigError: unknown name, impossible value.
    """

    name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]] = {}  # settings whose default is another one for this model, by leaf name
    uses: ClassVar[frozenset[str]] = Recipe.leaves_of("data") | {"seed"}  # settings that mean something to this model, by leaf name
    space: ClassVar[dict[str, list[Any]]] = {}  # what a benchmark tries when it tunes this model, by leaf name
    reads_times: ClassVar[bool] = False  # of a history's items, where they are known
    logits: ClassVar[bool] = False  # scores are logits; else amounts, of which below 0 is none
    complete: ClassVar[bool] = True  # `scores` has every item; else `best` finds what `scores` has not
    recipe: Recipe
    dataset: Dataset

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):  # else a base of several models
            MODELS[cls.name] = cls

    def __init__(self, recipe: Recipe | None = None, **settings: Any):
        given = Recipe.of(recipe.model_dump(exclude_unset=True) if recipe else None, **settings)
        self.recipe = given.over(Recipe.of(None, **self.defaults))

    def passed_over(self) -> list[str]:
        """Settings, as `section.leaf`, that have another value than their default and mean nothing to this model."""
        plain = Recipe.of(None, **self.defaults).model_dump()
        given = self.recipe.model_dump(exclude_unset=True)
        leaves = [(section, leaf) for section, values in given.items() for leaf in values if leaf not in self.uses]
        return [f"{section}.{leaf}" for section, leaf in leaves if given[section][leaf] != plain[section][leaf]]

    def reads_vectors(self) -> bool:
        """Whether `fit` wants the items' vectors."""
        return False

    # What a model writes

    def _fit(self, dataset: Dataset, split: Split, **options: Any) -> None:
        raise NotImplementedError

    def scores(self, histories: Sequences) -> np.ndarray:
        """Histories of item rows, oldest first -> float32 [len(histories), n_items], higher is better."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """All that a fit learned, but vectors and codes."""
        raise NotImplementedError

    def restore(self, tensors: dict[str, Tensor], vectors: np.ndarray | None, codes: np.ndarray | None) -> None:
        """Take back what `tensors` gave; `self.recipe` and `self.dataset` are set."""
        raise NotImplementedError

    def catalogue(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Vectors float32 [n_items, d] and codes int32 [n_items, n_codes] of the items, where the model has them."""
        return None, None

    def described(self, vectors: np.ndarray) -> np.ndarray:
        """Of `catalogue()`'s or `new_vectors`'s columns those that say what an item is; what users did is left out."""
        return vectors

    def has_codes(self) -> bool:
        """Whether a fit gives items codes; known before it."""
        return False

    def code_groups(self) -> np.ndarray | None:
        """int64 [n_items], for code-level hits: items of one number share their code id. None where the model has no codes.

        By default the items whose codes are all the same; a model whose items are told apart by a code or a repair made for that
        alone gives the groups from before it.
        """
        codes = self.catalogue()[1]
        return None if codes is None else np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)

    # Items that come after the fit. A model that can place them writes the first three; the library's user calls `with_items`.

    def new_vectors(self, items: pa.Table) -> np.ndarray:
        """float32 [m, d]: vectors of new items, in the space of `catalogue()`'s. items: the columns of the item table.

        Raises PlacingError: the model, or its vectors, have no place for new items; an item without text or vector.
        """
        raise PlacingError(f"model '{self.name}' cannot place new items")

    def new_codes(self, vectors: np.ndarray) -> np.ndarray | None:
        """int32 [m, n_codes]: codes of new items, distinct from all others'; None for a model without codes."""
        return None

    def extended(self, vectors: np.ndarray, codes: np.ndarray | None) -> Recommender:
        """A model whose `scores` know m more items, after those that were there. This one is not changed; what both know is shared.

        vectors: float32 [m, d]; codes: int32 [m, n_codes]. The result's `dataset` is still the fitted one. Raises PlacingError.
        """
        raise PlacingError(f"model '{self.name}' cannot place new items")

    def widened(self, count: int) -> Recommender:
        """A model over `count` more items of which it knows nothing, as a part of a fusion beside one that does. Raises PlacingError."""
        raise PlacingError(f"model '{self.name}' cannot place new items")

    def with_items(self, items: pa.Table) -> Recommender:
        """This model over a larger catalogue, without a fit: `items`, a table with columns of the item table, comes after the others.

        Raises PlacingError; DataError: an id that is there already or twice, columns that the item table does not have.
        """
        dataset = self.dataset.with_items(items)
        added = dataset.items.slice(self.dataset.n_items)
        vectors = self.new_vectors(added)
        model = self.extended(vectors, self.new_codes(vectors))
        model.dataset = dataset
        return model

    # What all models have

    def fit(self, dataset: Dataset, split: Split | None = None, **options: Any) -> Recommender:
        """Learn from the training part of `split` (by default the recipe's split of `dataset`)."""
        data = self.recipe.data
        split = split or dataset.split(data.split, data.validation_share, data.test_share, self.recipe.training.seed)
        self._fit(dataset, split, **options)
        self.dataset = dataset
        return self

    def recommend(
        self,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        *,
        users: Sequence[Any] | None = None,
        times: Sequence[Sequence[int]] | None = None,
        exclude_seen: bool = True,
        only: Sequence[Any] | None = None,
        exclude: Sequence[Any] | None = None,
    ) -> tuple[list[list[Any]], list[list[float]]]:
        """The k best items for each history, or for each user of the data set.

        Args:
            histories: item ids, oldest first; may be empty lists.
            k: at least 1.
            users: user ids, instead of histories: all that the data set holds of them.
            times: of the histories' items, in the data set's unit (`dataset.time_unit`), for models that read times; None: not known.
            exclude_seen: leave out the items of the history.
            only: item ids that may be recommended; all when None.
            exclude: item ids that may not.
        Returns:
            ids and scores, best first; fewer than k where fewer are allowed. Equal scores: the earlier row of the item table.
        Raises:
            UnknownIdError: a user or item that the data set does not hold. ConfigError: k below 1, both or none of histories and
            users, times that do not fit the histories.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise ConfigError(f"k must be a whole number, not {k!r}")
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        rows = self._histories(histories, users, times)
        barred = self.barred(only, exclude)
        ids: list[list[Any]] = []
        scores: list[list[float]] = []
        for best, value in zip(*self.best(rows, min(k, self.dataset.n_items), barred, exclude_seen)):
            found = best >= 0
            ids.append([self.dataset.item_ids[row].as_py() for row in best[found].tolist()])
            scores.append(value[found].tolist())
        return ids, scores

    def barred(self, only: Sequence[Any] | None, exclude: Sequence[Any] | None) -> np.ndarray | None:
        """bool [n_items], what `recommend` may not give; None where it may give all. Raises UnknownIdError."""
        if only is None and exclude is None:
            return None
        barred = np.full(self.dataset.n_items, only is not None)
        barred[[] if only is None else self.dataset.item_rows(only)] = False
        barred[[] if exclude is None else self.dataset.item_rows(exclude)] = True
        return barred

    def best(self, histories: Sequences, k: int, barred: np.ndarray | None, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each history: rows int32 [n, k] (-1 where fewer are allowed), scores float32 [n, k], best first.

        barred: bool [n_items], items that nobody may get.
        """
        found = []
        for rows in self._blocks(histories):
            part = histories.take(rows)
            values = np.array(self.scores(part), dtype=np.float32)
            if barred is not None:
                values[:, barred] = -np.inf
            if exclude_seen:
                values[np.repeat(np.arange(len(part)), part.lengths), part.items] = -np.inf
            found.append(top_k(values, k))
        if not found:
            return np.empty((0, k), np.int32), np.empty((0, k), np.float32)
        return tuple(np.concatenate(parts) for parts in zip(*found))

    def score(self, histories: Sequence[Sequence[Any]], items: Sequence[Any], times: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """Scores of the given items for each history: float32 [len(histories), len(items)]. `times` and errors as in `recommend`."""
        columns, rows = self.dataset.item_rows(items), self._histories(histories, None, times)
        found = np.empty((len(rows), len(columns)), np.float32)
        for at in self._blocks(rows):
            found[at] = np.asarray(self.scores(rows.take(at)))[:, columns]
        return found

    def _blocks(self, histories: Sequences) -> Iterator[np.ndarray]:
        """Rows of histories that are scored together, so that no more scores exist at a time than memory is meant for them."""
        step = max(1, min(HISTORIES_AT_ONCE, SCORES_AT_ONCE // self.dataset.n_items))
        for start in range(0, len(histories), step):
            yield np.arange(start, min(start + step, len(histories)))

    def _histories(
        self, histories: Sequence[Sequence[Any]] | None, users: Sequence[Any] | None, times: Sequence[Sequence[int]] | None
    ) -> Sequences:
        if (histories is None) == (users is None):
            raise ConfigError("give either histories or users")
        if isinstance(histories, str | bytes):
            raise ConfigError(f"histories are lists of item ids, not {histories!r}")
        if users is not None:
            if times is not None:
                raise ConfigError("times go with histories; those of users are known")
            return self.dataset.sequences.take(self.dataset.user_rows(users))
        for history in histories:
            if isinstance(history, str | bytes) or not hasattr(history, "__len__"):
                raise ConfigError(f"a history is a list of item ids, not {history!r}")
        flat = self.dataset.item_rows([item for history in histories for item in history])
        rows = Sequences.of(np.split(flat, np.cumsum([len(history) for history in histories])[:-1]) if len(histories) else [])
        found = None if times is None else _times(times, rows)
        return replace(rows, times=found) if self.dataset.time_unit is not None else rows  # else no model has learned what times are

    def save(self, folder: str | Path) -> None:
        """Write all that `load` needs into a folder; one that is there is replaced as a whole or not at all. Raises RunError."""
        with atomic(folder) as temporary:
            temporary.mkdir()
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """The model's files, the manifest last, into an empty folder."""
        (folder / "config.yaml").write_text(self.recipe.yaml(), encoding="utf-8")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}, folder / "model.safetensors")
        vectors, codes = self.catalogue()
        catalogue = {"item": self.dataset.item_ids}
        if codes is not None:
            catalogue["codes"] = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])
        pq.write_table(pa.table(catalogue), folder / "catalogue.parquet", compression="zstd")
        if vectors is not None:
            save_file({"vectors": torch.from_numpy(vectors)}, folder / "vectors.safetensors")
        self.dataset.save(folder / "dataset")
        files = {path.relative_to(folder).as_posix(): checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        facts = {"format": FORMAT, "asymrec": __version__, "model": self.name, "files": files}
        (folder / "manifest.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Recommender:
        """Read a folder that `save` wrote; any model's, when called on `Recommender` itself.

        Raises RunError: not a run folder, unfinished, of another format, a file damaged or missing.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        kind = MODELS.get(manifest["model"])
        if kind is None or not issubclass(kind, cls):
            raise RunError(f"{folder} holds a model '{manifest['model']}', not '{getattr(cls, 'name', 'any of ours')}'")
        try:
            model = kind(Recipe.read(folder / "config.yaml"))
            model.dataset = Dataset.load(folder / "dataset")
            tensors = load_file(folder / "model.safetensors")
            codes = vectors = None
            table = pq.read_table(folder / "catalogue.parquet")
            if "codes" in table.column_names:
                column = table["codes"].combine_chunks()
                codes = np.array(column.flatten()).reshape(len(column), -1)
            if (folder / "vectors.safetensors").exists():
                vectors = load_file(folder / "vectors.safetensors")["vectors"].numpy()
            model.restore(tensors, vectors, codes)
        except (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException, SafetensorError) as error:
            raise RunError(f"cannot read {folder}, written by asymrec {manifest['asymrec']}: {error}") from None
        return model


def _times(times: Sequence[Sequence[int]], histories: Sequences) -> np.ndarray:
    """int64 [total], flat as the histories. Raises ConfigError: not a whole number for every item, or a smaller one after a larger."""
    if not hasattr(times, "__len__"):
        raise ConfigError(f"times are lists, one for each history, not {times!r}")
    if len(times) != len(histories):
        raise ConfigError(f"times are given for {len(times)} histories of {len(histories)}")
    flat = np.zeros(len(histories.items), np.int64)
    for number, part in enumerate(times):
        begin, end = histories.offsets[number : number + 2]
        try:
            when = np.asarray(part)
        except ValueError:  # lists of several lengths
            when = np.empty((0, 0))
        if when.ndim != 1:
            raise ConfigError(f"times of history {number} must be a list of whole numbers, not {part!r}")
        if len(when) != end - begin:
            raise ConfigError(f"history {number} has {end - begin} items and {len(when)} times")
        if len(when) and (when.dtype.kind not in "iu" or when.max() > np.iinfo(np.int64).max):
            raise ConfigError(f"times of history {number} must be whole numbers of 64 bits, not {when.dtype}")
        flat[begin:end] = when
        if (np.diff(flat[begin:end]) < 0).any():
            raise ConfigError(f"times of history {number} must not fall: the oldest item comes first")
    return flat


def check_format(what: str, form: Any, version: str) -> None:
    """Raises RunError where `what`, by asymrec `version`, is of another format than ours."""
    if form != FORMAT:
        ours = f"this is {__version__} with format {FORMAT}"
        raise RunError(f"{what} by asymrec {version} in format {form}, {ours}: use asymrec {version}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run folder, every file's checksum compared. Raises RunError as `Recommender.load`."""
    recover(folder)
    if not folder.is_dir():
        raise RunError(f"there is no run folder {folder}")
    path = folder / "manifest.json"
    if not path.exists():
        if (folder / "pipeline.json").exists():
            raise RunError(f"{folder} is a pipeline, which `asymrec pipeline` reads; its run is {folder / 'retrieval'}")
        if (folder / "checkpoint").exists() or (folder / "config.yaml").exists():
            raise RunError(f"the run in {folder} is not finished: go on with `asymrec fit DATA -o {folder} --resume`")
        if (folder / "ranker.json").exists():
            raise RunError(f"{folder} is a ranker, which `asymrec rank` reads: it orders items and retrieves none")
        raise RunError(f"{folder} is not a run folder: it has no manifest.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form, version, files = manifest["format"], manifest["asymrec"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{path} is damaged") from None
    check_format(f"{folder} was written", form, version)
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise RunError(f"{folder} is damaged: {name} is missing")
        if checksum(folder / name) != digest:
            raise RunError(f"{folder} is damaged: {name} is not what was written (checksum)")
    return manifest
