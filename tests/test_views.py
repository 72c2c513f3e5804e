"""Views that the user brings, read in the order of the item table, and refused where they do not fit."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from asymrec.config import VectorsConfig
from asymrec.data.dataset import Dataset
from asymrec.errors import VectorError
from asymrec.vectors import item_vectors, read_view
from asymrec.vectors import text as text_module
from asymrec.vectors.placing import Placer

IDS = ["b", "d", "a", "c"]
VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


def dataset(ids=tuple(IDS), **columns):
    interactions = pa.table({"user_id": [1, 1, 1], "item_id": [ids[0], ids[1], ids[2]]})
    return Dataset.read(interactions, pa.table({"item_id": list(ids), **columns}))


def lists(vectors, kind=None):
    return pa.array([None if row is None else list(row) for row in vectors], kind)


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float16()), pa.list_(pa.float32(), 3), pa.list_(pa.int16())])
def test_a_column_of_the_item_table(kind):
    values = VECTORS.astype(np.int64) if pa.types.is_integer(kind.value_type) else VECTORS.astype(np.float16)
    data = dataset(image=pa.array([list(row) for row in values], kind))
    vectors = read_view("image", data)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, VECTORS)


def test_files_in_row_order(tmp_path):
    data = dataset()
    np.save(tmp_path / "a.npy", VECTORS.astype(np.float64))
    save_file({"vectors": torch.from_numpy(VECTORS).bfloat16(), "other": torch.zeros(2)}, tmp_path / "b.safetensors")
    for name in ("a.npy", "b.safetensors"):
        np.testing.assert_array_equal(read_view(str(tmp_path / name), data), VECTORS)


@pytest.mark.parametrize("ids", [IDS, [7, 3, 9, 1]])
def test_a_parquet_file_in_any_order_with_more_items(tmp_path, ids):
    data, order = dataset(ids), [2, 0, 3, 1]
    others = ["zz"] if isinstance(ids[0], str) else [1000]
    table = pa.table(
        {
            "product_id": pa.array([ids[i] for i in order] + others).cast(pa.string() if ids is IDS else pa.int16()),
            "note": ["n"] * 5,
            "vector": lists([*VECTORS[order], [0, 0, 0]]),
        }
    )
    pq.write_table(table, tmp_path / "v.parquet")
    np.testing.assert_array_equal(read_view(str(tmp_path / "v.parquet"), data), VECTORS)


def parquet(ids, vectors, **more):
    return lambda path: pq.write_table(pa.table({"item_id": ids, "vector": lists(vectors), **more}), path)


def with_value(value):
    changed = VECTORS.astype(np.float64).copy()
    changed[2, 1] = value
    return changed


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("v.npy", lambda path: None, "no such file"),
        ("v.txt", lambda path: path.write_text("1"), "neither a column of the item table nor a .npy"),
        ("v.npy", lambda path: path.write_bytes(b"junk"), "not readable as npy"),
        ("v.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "not readable as npy"),
        ("v.npy", lambda path: np.save(path, VECTORS[:3]), "has 3 rows, the item table 4"),
        ("v.npy", lambda path: np.save(path, VECTORS[0]), "two dimensions"),
        ("v.npy", lambda path: np.save(path, VECTORS.astype(str)), "expected numbers"),
        ("v.npy", lambda path: np.save(path, VECTORS[:, :0]), "no entries"),
        ("v.npy", lambda path: np.save(path, with_value(np.nan)), r"row 3 \(item 'a'\): a value that is not finite"),
        ("v.npy", lambda path: np.save(path, with_value(1e300)), r"row 3 \(item 'a'\): a value that is not finite"),
        ("v.safetensors", lambda path: path.write_bytes(b"\x09"), "not readable as safetensors"),
        ("v.safetensors", lambda path: save_file({"x": torch.zeros(1)}, path), "no tensor `vectors`; it has x"),
        ("v.parquet", lambda path: path.write_bytes(b"PAR1"), "not readable as parquet"),
        ("v.parquet", parquet(IDS, VECTORS, second=lists(VECTORS)), "one column of vectors, found vector, second"),
        ("v.parquet", lambda path: pq.write_table(pa.table({"x": IDS, "v": lists(VECTORS)}), path), "no column of the item id"),
        ("v.parquet", parquet(["b", "d", "x", "y"], VECTORS), "2 of 4 items have no vector, the first is 'a'"),
        ("v.parquet", parquet([*IDS, "d"], [*VECTORS, VECTORS[0]]), "item 'd' has more than one vector"),
        ("v.parquet", parquet(["c", "b", "a", "d"], [*VECTORS[:3], [1.0]]), r"row 2 \(item 'd'\): 1 entries, the first item has 3"),
        ("v.parquet", parquet(IDS, [*VECTORS[:3], None]), r"row 4 \(item 'c'\): no vector"),
        ("v.parquet", parquet(IDS, [*VECTORS[:3].tolist(), [1.0, None, 2.0]]), r"row 4 \(item 'c'\): a null in the vector"),
        ("v.parquet", parquet(IDS, with_value(np.inf)), r"row 3 \(item 'a'\): a value that is not finite"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(VectorError, match=message) as caught:
        read_view(str(tmp_path / name), dataset())
    assert "\n" not in str(caught.value)


def test_ids_of_another_kind(tmp_path):
    parquet(IDS, VECTORS)(tmp_path / "v.parquet")
    with pytest.raises(VectorError, match=r"column 'item_id': string are no ids of these items \(int64\)"):
        read_view(str(tmp_path / "v.parquet"), dataset([1, 2, 3, 4]))


def test_a_column_that_holds_no_vectors():
    data = dataset(words=[["a"], ["b"], ["c"], ["d"]], gap=lists([[1.0], [2.0], None, [3.0]]))
    with pytest.raises(VectorError, match=r"column 'words' holds list.*not lists of numbers"):
        read_view("words", data)
    with pytest.warns(UserWarning, match="1 of 4 items have no vector in 'gap'"):
        np.testing.assert_array_equal(read_view("gap", data), [[1], [2], [0], [3]])
    data = dataset(gap=lists([[1.0], [2.0, 1.0], None, [3.0]]), none=pa.array([None] * 4, pa.list_(pa.float32())))
    with pytest.raises(VectorError, match=r"column 'gap', row 2 \(item 'd'\): 2 entries"):
        read_view("gap", data)
    with pytest.raises(VectorError, match=r"column 'none', row 1 \(item 'b'\): no vector"):
        read_view("none", data)


@pytest.fixture
def plain_text(monkeypatch):
    def lengths(texts, *_, **__):
        return np.array([[len(text), 0] for text in texts], np.float32)

    monkeypatch.setattr("asymrec.vectors.columns.text_vectors", lengths)


def test_views_side_by_side_weigh_the_same(plain_text, tmp_path):
    np.save(tmp_path / "big.npy", VECTORS * 1000)
    data = dataset(title=["aa", "b", "ccc", "dd"], image=lists(VECTORS))
    vectors = item_vectors(data, VectorsConfig(views=("image", str(tmp_path / "big.npy"))))
    assert vectors.shape == (4, 2 + 3 + 3) and vectors.dtype == np.float32
    for view in (vectors[:, :2], vectors[:, 2:5], vectors[:, 5:]):
        assert np.linalg.norm(view, axis=1).mean() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(vectors[:, 0], [1, 0.5, 1.5, 1])
    np.testing.assert_allclose(vectors[:, 2:5], vectors[:, 5:], atol=1e-6)


def test_text_may_be_left_out(plain_text):
    data = dataset(title=["aa", "b", "ccc", "dd"], image=lists(VECTORS))
    assert item_vectors(data, VectorsConfig(text=(), views=("image",))).shape == (4, 3)
    assert item_vectors(dataset(image=lists(VECTORS)), VectorsConfig(views=("image",))).shape == (4, 3)
    assert item_vectors(data, VectorsConfig()).shape == (4, 2)


def test_without_text_columns_of_vectors_are_taken_and_this_is_said():
    data = dataset(image=lists(VECTORS), ragged=lists([[1.0], [2.0, 1.0], None, [3.0]]))
    with pytest.warns(UserWarning, match="their vectors are those in image"):
        vectors = item_vectors(data, VectorsConfig())
    np.testing.assert_array_equal(vectors, item_vectors(data, VectorsConfig(views=("image",))))
    new = Placer(data.items, data.item_column, VectorsConfig(), vectors).vectors(data.items.slice(1, 2))
    np.testing.assert_allclose(new, vectors[1:3], rtol=1e-6)


def test_text_that_looks_like_codes_is_named_in_the_error():
    words = dataset([f"i{n}" for n in range(30)], titel=[f"word{n}" for n in range(30)])
    with pytest.raises(VectorError, match="taken where it is named: titel"):
        item_vectors(words, VectorsConfig())


def test_neither_text_nor_views():
    with pytest.raises(VectorError, match=r"neither text nor vectors: give .*`text`.*`views`.*`collaborative=64`"):
        item_vectors(dataset(), VectorsConfig())
    ids = ["an id", "with words", "is still", "no text"]
    named = Dataset.read(pa.table({"user": [1, 1, 1], "product": ids[:3]}), pa.table({"product": ids}))
    with pytest.raises(VectorError, match="neither text nor vectors"):
        item_vectors(named, VectorsConfig())
    with pytest.raises(VectorError, match="view 'image': all vectors are zero"):
        item_vectors(dataset(image=lists(VECTORS * 0)), VectorsConfig(views=("image",)))


def test_a_recipe_reaches_the_encoder(monkeypatch):
    asked = {}

    def embed(texts, name, max_tokens, cache, progress):
        asked.update(texts=texts, name=name, max_tokens=max_tokens)
        return np.ones((len(texts), 2), np.float32)

    monkeypatch.setattr(text_module, "_embed", embed)
    data = dataset(title=["x", "y", "z", "x"], kind=["k", "l", "m", "k"])
    item_vectors(data, VectorsConfig(text=("kind", "title"), encoder="some/model", max_tokens=9))
    assert asked == {"texts": ["Kind: k. x", "Kind: l. y", "Kind: m. z"], "name": "some/model", "max_tokens": 9}


def test_without_text_lists_of_codes_are_embedded_and_this_is_said():
    codes = [[1, 2], [1, 3], [7, 9], [7, 8]]
    with pytest.warns(UserWarning, match="no text: their vectors are made from the codes in sid, tags"):
        vectors = item_vectors(dataset(sid=pa.array(codes, pa.list_(pa.int16())), tags=[[5], [5, 6], None, []]), VectorsConfig())
    assert vectors.shape[0] == 4 and np.isfinite(vectors).all()
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2] + 0.1 and near[2, 3] > near[2, 0] + 0.1  # shared codes are near
    with pytest.warns(UserWarning, match="no text"):
        swapped = item_vectors(dataset(sid=pa.array([[1, 2], [2, 1], [7, 9], [7, 8]], pa.list_(pa.int16()))), VectorsConfig())
    assert abs(swapped[0] @ swapped[1]) < 1e-5  # the same number in another place is another code
    with pytest.raises(VectorError, match="empty"):
        item_vectors(dataset(tags=pa.array([[], [], None, []], pa.list_(pa.int16()))), VectorsConfig())
