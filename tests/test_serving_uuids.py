"""UUIDs as ids of users and items, and in another column: lists in a file, and a catalogue that changes while it is served."""

from __future__ import annotations

from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import client, recommend
from small import SETTINGS, here, tables

from asymrec import Dataset
from asymrec.models import AsymRec

pytest.importorskip("fastapi")


def test_uuids_are_ids_and_values_like_others(tmp_path):
    """Of users, who may be asked for in any writing and have one history, of items, and in another column."""
    interactions, items = tables(60, 60)

    def made(numbers: list[int]) -> pa.Array:
        return pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID(int=number << 64).bytes for number in numbers], pa.binary(16)))

    columns = [made(interactions[name].to_pylist()) for name in ("user_id", "item_id")]
    interactions = interactions.set_column(0, "user_id", columns[0]).set_column(1, "item_id", columns[1])
    items = items.set_column(0, "item_id", made(items["item_id"].to_pylist())).append_column("seller", made(range(60)))
    model = AsymRec(**SETTINGS | {"epochs": 1, "quantizer_epochs": 0}).fit(Dataset.read(interactions, items))
    model.save(tmp_path / "run")
    user, item, new = (str(UUID(int=number << 64)) for number in (5, 105, 999))

    pq.write_table(pa.table({"history": [[item], []]}), tmp_path / "histories.parquet")
    done = here("batch", tmp_path / "run", tmp_path / "histories.parquet", "-o", tmp_path / "lists.parquet", "-k", "3")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "lists.parquet")["items"].to_pylist() == model.recommend([[item], []], 3)[0]

    with client(tmp_path / "run", f"sqlite:///{tmp_path}/store.sqlite") as api:
        before = api.get(f"/v1/items/{item}").json()["columns"]
        assert api.patch(f"/v1/items/{item}", json={"title": "else"}).status_code == 200
        assert api.get(f"/v1/items/{item}").json()["columns"] == before | {"title": "else"}
        assert api.put(f"/v1/items/{new}", json=before | {"seller": None}).status_code == 200
        assert recommend(api, history=[item], only=[new])["items"][0]["item"] == new
        assert "which 'new' is not" in api.put("/v1/items/new", json=before).json()["detail"]
        found = recommend(
            api, history=[new], where=[{"column": "seller", "any_of": [before["seller"], str(UUID(int=7 << 64))]}], exclude_seen=False
        )
        assert item in [one["item"] for one in found["items"]] and len(found["items"]) == 2
        assert "cannot be compared" in recommend(api, 422, history=[new], where=[{"column": "seller", "any_of": ["x"]}])["detail"]
        for writing in (user, user.upper(), user.replace("-", "")):
            assert api.post("/v1/events", json={"events": [{"user": writing, "item": item}]}).status_code == 201
        for writing in (user, user.upper()):
            told = api.get(f"/v1/users/{writing}").json()
            assert told["user"] == user and told["stored"] == 3
            assert recommend(api, user=writing)["history"] == len(told["history"])
        assert api.delete(f"/v1/users/{user.upper()}").json() == {"stored": 3}
