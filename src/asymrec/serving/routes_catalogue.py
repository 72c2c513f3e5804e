"""Routes over the items: look them up, change them, go back."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query

from asymrec.errors import ConfigError, RunError
from asymrec.serving import schemas
from asymrec.serving.security import needs
from asymrec.serving.service import Service
from asymrec.serving.snapshot import Snapshot


def routes(app: FastAPI, service: Service) -> None:
    _items(app, service)
    _versions(app, service)
    _codes(app, service)


def _items(app: FastAPI, service: Service) -> None:
    read, write, catalogue = [needs("read")], [needs("write")], service.catalogue

    @app.get("/v1/items", dependencies=read, tags=["items"])
    def search_items(
        search: Annotated[str, Query(min_length=1, max_length=256)], limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> schemas.Briefs:
        """Items whose title holds all words of a text, or whose id it is."""
        snapshot = catalogue.snapshot
        return schemas.Briefs(items=[_brief(snapshot, row) for row in snapshot.search(search, limit)])

    @app.post("/v1/items", dependencies=write, tags=["items"])
    def put_items(given: schemas.ItemsIn) -> schemas.Changed:
        """Add items, or describe known ones anew, all of them or none. When this answers they can be recommended."""
        return _changed(catalogue.put([(one.item, one.columns) for one in given.items]))

    @app.get("/v1/items/{item:path}", dependencies=read, tags=["items"])
    def get_item(item: schemas.Name) -> schemas.Item:
        """An item's columns and codes."""
        snapshot = catalogue.snapshot
        row = snapshot.row(item)
        about = {"retired": not snapshot.live[row], "columns": snapshot.record(row), "codes": snapshot.codes(row)}
        return schemas.Item(**_brief(snapshot, row).model_dump(), **about)

    @app.put("/v1/items/{item:path}", dependencies=write, tags=["items"])
    def put_item(item: schemas.Name, columns: schemas.Columns) -> schemas.Changed:
        """Add an item, or describe a known one anew; the body is its columns. A retired one comes back."""
        return _changed(catalogue.put([(item, columns)]))

    @app.patch("/v1/items/{item:path}", dependencies=write, tags=["items"])
    def patch_item(item: schemas.Name, columns: schemas.Columns) -> schemas.Changed:
        """Change some columns of an item."""
        return _changed(catalogue.patch(item, columns))

    @app.delete("/v1/items/{item:path}", dependencies=write, tags=["items"])
    def retire_item(item: schemas.Name) -> schemas.Changed:
        """From now on the item is not recommended; in histories it stays, and putting it brings it back."""
        return _changed(catalogue.retire([item]))

    @app.get("/v1/similar/{item:path}", dependencies=read, tags=["recommend"])
    def similar(item: schemas.Name, k: Annotated[int, Query(ge=1, le=schemas.MOST)] = 10) -> schemas.Similar:
        """The items whose vectors are nearest to an item's."""
        snapshot = catalogue.snapshot
        found = snapshot.nearest(snapshot.row(item), k)
        near = [schemas.Near(**_brief(snapshot, row).model_dump(), similarity=round(value, 4)) for row, value in found]
        return schemas.Similar(version=snapshot.version, items=near)


def _versions(app: FastAPI, service: Service) -> None:
    read, write, catalogue = [needs("read")], [needs("write")], service.catalogue

    @app.get("/v1/catalogue", dependencies=read, tags=["catalogue"])
    def get_catalogue() -> schemas.Catalogue:
        """What is served."""
        snapshot = catalogue.snapshot
        dataset, codes = snapshot.run.dataset, snapshot.model.catalogue()[1]
        quantizer = None if codes is None else snapshot.run.model.quantizer
        return schemas.Catalogue(
            version=snapshot.version,
            items=snapshot.n_live,
            retired=len(snapshot.rows) - snapshot.n_live,
            columns={field.name: str(field.type) for field in dataset.items.schema if field.name != dataset.item_column},
            time_unit=dataset.time_unit,
            run=snapshot.run.name,
            model=snapshot.model.name,
            code_shape=quantizer and list(quantizer.code_shape),
            codewords=quantizer and list(quantizer.codebook_sizes),
        )

    @app.get("/v1/catalogue/versions", dependencies=read, tags=["catalogue"])
    def get_versions(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> schemas.Versions:
        """The latest versions of the catalogue, newest first; version 0 is the run's own."""
        return schemas.Versions(versions=[schemas.Version(**one) for one in service.store.versions(limit)])

    @app.post("/v1/catalogue/rollback", dependencies=write, tags=["catalogue"])
    def roll_back(back: schemas.Back) -> schemas.Changed:
        """Make the catalogue what it was at a version. That is a new version, so it can be taken back as well."""
        return _changed(catalogue.roll_back(back.version))


def _codes(app: FastAPI, service: Service) -> None:
    read, catalogue = [needs("read")], service.catalogue

    @app.get("/v1/codes", dependencies=read, tags=["codes"])
    def codebooks() -> schemas.Codebooks:
        """How often each codeword of each codebook is used by the items that can be recommended."""
        snapshot = catalogue.snapshot
        codes, quantizer = _coded(snapshot)
        levels = quantizer.code_shape[1]
        books = []
        for column, size in enumerate(quantizer.codebook_sizes):
            counts = np.bincount(codes[snapshot.live, column], minlength=size)
            share = counts[counts > 0] / max(1, counts.sum())
            entropy = float(-(share * np.log(share)).sum())
            facts = {"used": int((counts > 0).sum()), "size": size, "perplexity": round(float(np.exp(entropy)), 2)}
            books.append(schemas.Codebook(facet=column // levels, level=column % levels, counts=counts.tolist(), **facts))
        return schemas.Codebooks(version=snapshot.version, codebooks=books)

    @app.get("/v1/codes/{facet}/{level}/{code}", dependencies=read, tags=["codes"])
    def items_of_code(facet: int, level: int, code: int, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> schemas.Briefs:
        """Items that have a codeword at a place, counted from 0."""
        snapshot = catalogue.snapshot
        codes, quantizer = _coded(snapshot)
        facets, levels = quantizer.code_shape
        if not (0 <= facet < facets and 0 <= level < levels and 0 <= code < quantizer.codebook_sizes[facet * levels + level]):
            raise ConfigError(f"there are {facets} facets of {levels} levels, and codewords up to {max(quantizer.codebook_sizes) - 1}")
        rows = np.flatnonzero((codes[:, facet * levels + level] == code) & snapshot.live)[:limit]
        return schemas.Briefs(items=[_brief(snapshot, int(row)) for row in rows])


def _coded(snapshot: Snapshot) -> tuple[np.ndarray, object]:
    codes = snapshot.model.catalogue()[1]
    if codes is None:
        raise RunError(f"model '{snapshot.model.name}' has no codes")
    return codes, snapshot.run.model.quantizer


def _brief(snapshot: Snapshot, row: int) -> schemas.Brief:
    return schemas.Brief(item=snapshot.ids[row], title=snapshot.title(row))


def _changed(snapshot: Snapshot) -> schemas.Changed:
    return schemas.Changed(version=snapshot.version)
