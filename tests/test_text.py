"""Texts out of columns, and text vectors: cache, empty texts, hashed n-grams."""

import hashlib
import os
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from asymrec.errors import VectorError
from asymrec.vectors import encoders, hashed, item_texts, text, text_vectors
from asymrec.vectors.text import text_columns


class CountingEncoder:
    """A vector made of the text's hash; remembers what it was asked for."""

    def __init__(self, identity="counting", fail_after=None):
        self.identity, self.fail_after, self.asked = identity, fail_after, []

    def encode(self, texts, max_tokens, advance):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += texts
        advance(len(texts))
        return np.stack([self.vector(each) for each in texts])

    @staticmethod
    def vector(content):
        return np.frombuffer(hashlib.sha256(content.encode()).digest(), np.uint8).astype(np.float32) / 255


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    monkeypatch.setenv("ASYMREC_CACHE", str(tmp_path / "cache"))
    found = CountingEncoder()
    monkeypatch.setattr(encoders, "find_encoder", lambda name: found)
    return found


def test_columns_are_joined_and_named():
    items = pa.table(
        {
            "brand": ["OPI", None, ""],
            "categories": [["Makeup", "Nails"], [], None],
            "Title": ["Nail  lacquer.", "A\nb", None],
            "year": [1999, None, 2001],
        }
    )
    assert item_texts(items) == ["Nail lacquer. Brand: OPI. Categories: Makeup, Nails", "A b", ""]
    assert item_texts(items, ["year", "brand"]) == ["Year: 1999. Brand: OPI", "", "Year: 2001"]
    assert item_texts(items, []) == ["", "", ""]


def test_a_text_column_stands_alone():
    items = pa.table({"title": ["a b"], "text": pa.array(["all of it"]).dictionary_encode()})
    assert item_texts(items) == ["all of it"]


def test_ids_links_codes_and_numbers_are_no_text():
    words = ["soft", "hard", "red", "warm"]
    n = 40
    items = pa.table(
        {
            "asin": [f"B00{i:05}" for i in range(n)],
            "parentAsin": ["x y"] * n,
            "cover": [f"https://example.org/{i}.jpg" for i in range(n)],
            "released": [f"2001-01-{i % 28 + 1:02}" for i in range(n)],
            "package": [f"org.example.app{i}" for i in range(n)],
            "nothing": pa.array([None] * n, pa.string()),
            "feel": [words[i % 4] for i in range(n)],
            "codes": [["a", "b"]] * n,
            "numbers": [[1, 2]] * n,
            "name": [f"thing{i}" for i in range(n)],
        }
    )
    assert text_columns(items) == ["name", "feel"]


def test_errors_name_the_column():
    items = pa.table({"title": ["a"], "vector": [[1.0]]})
    with pytest.raises(VectorError, match="no column 'titel'; did you mean 'title'"):
        item_texts(items, ["titel"])
    with pytest.raises(VectorError, match=r"'vector' holds list<.*views"):
        item_texts(items, ["vector"])
    with pytest.raises(VectorError, match="no column of text"):
        item_texts(items.select(["vector"]))


cells = st.none() | st.text(max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(cells, cells, st.none() | st.lists(cells, max_size=3)), min_size=1, max_size=8))
@example([(None, "0 .", None), (". .", None, None)])
def test_any_cells_give_one_clean_line_an_item(rows):
    title, brand, tags = (list(column) for column in zip(*rows))
    kinds = {"title": pa.string(), "brand": pa.string(), "tags": pa.list_(pa.string())}
    items = pa.table({name: pa.array(column, kind) for (name, kind), column in zip(kinds.items(), (title, brand, tags))})
    texts = item_texts(items, ["title", "brand", "tags"])
    assert len(texts) == len(rows)
    for line, row in zip(texts, rows):
        assert line == " ".join(line.split())
        if not any(row[:2]) and not any(row[2] or []):
            assert line == ""
        if row[1] and row[1].split() and not row[1].rstrip().endswith("."):
            assert "Brand: " + " ".join(row[1].split()) in line


def test_a_text_is_embedded_once(encoder):
    first = text_vectors(["a", "b", "a"], "any")
    assert encoder.asked == ["a", "b"]
    np.testing.assert_array_equal(first, [encoder.vector(each) for each in "aba"])
    more = text_vectors(["c", "a", "d", "b"], "any")
    assert encoder.asked == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(more, [encoder.vector(each) for each in "cadb"])
    text_vectors(["a"], "any", cache=False)
    assert encoder.asked == ["a", "b", "c", "d", "a"]


def test_another_encoder_or_limit_has_other_vectors(encoder):
    text_vectors(["a"], "any", max_tokens=8)
    text_vectors(["a"], "any", max_tokens=16)
    encoder.identity = "other"
    text_vectors(["a"], "any", max_tokens=16)
    assert encoder.asked == ["a"] * 3


def cache_files(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def swap_vectors(path):
    """The same keys with other vectors: whole as a file, wrong as a cache."""
    tensors = load_file(path)
    save_file(tensors | {"vectors": tensors["vectors"] + 1}, path, metadata={"sha256": "0" * 64})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 200),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        swap_vectors,
    ],
)
def test_damaged_cache_files_are_rebuilt(encoder, tmp_path, damage):
    expected = text_vectors(["a", "b"], "any")
    (path,) = cache_files(tmp_path)
    whole = path.read_bytes()
    damage(path)
    np.testing.assert_array_equal(text_vectors(["a", "b"], "any"), expected)
    assert encoder.asked == ["a", "b"] * 2
    assert cache_files(tmp_path) == [path] and path.read_bytes() == whole


def test_an_interrupted_run_keeps_what_it_had(encoder, monkeypatch):
    monkeypatch.setattr(text, "SLAB", 2)
    encoder.fail_after = 4
    with pytest.raises(KeyboardInterrupt):
        text_vectors(list("abcdef"), "any")
    encoder.fail_after = None
    text_vectors(list("abcdef"), "any")
    assert encoder.asked == list("abcdef")


def test_a_cache_that_cannot_be_written_is_only_warned_of(encoder, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not cached"):
        assert text_vectors(["a"], "any").shape == (1, 32)


def test_empty_texts_are_zero_and_counted(encoder):
    with pytest.warns(UserWarning, match="3 of 4 items have no text"):
        vectors = text_vectors(["", "a", None, " \n"], "any")
    np.testing.assert_array_equal(vectors[1], encoder.vector("a"))
    assert not vectors[[0, 2, 3]].any()
    with pytest.raises(VectorError, match="all 2 texts are empty"):
        text_vectors(["", None], "any")
    with pytest.raises(VectorError, match="no text holds a word"):
        text_vectors(["!!!", "???"], "hashed")


def test_an_encoder_must_give_finite_vectors(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "vector", lambda content: np.full(2, np.nan if content == "b" else 1, np.float32))
    with pytest.raises(VectorError, match="not finite for the text 'b'"):
        text_vectors(["a", "b"], "any")


def test_without_sentence_transformers_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(VectorError, match=r"pip install 'asymrec\[sentence-transformers\]'"):
        text_vectors(["a"], "some/model")


def test_minilm_that_cannot_be_had(monkeypatch):
    def refuse(*_):
        raise encoders.AsymrecError("no network")

    def absent(name):
        raise encoders.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(encoders, "wheel_files", refuse)
    monkeypatch.setattr(encoders.importlib.metadata, "distribution", absent)
    with pytest.raises(VectorError, match="no network; without a package index: encoder=hashed"):
        text_vectors(["a"])


def test_hashed_vectors_group_what_is_alike():
    kinds = ["red matte lipstick", "leather football size", "crime novel by"]
    texts = [f"{phrase} {20 * kind + i}" for kind, phrase in enumerate(kinds) for i in range(20)]
    with pytest.warns(UserWarning, match="not by a language model"):
        vectors = text_vectors(texts, "hashed")
    assert vectors.shape == (60, 60) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    nearest = np.argsort(-(vectors @ vectors.T), axis=1)[:, :10]
    assert (nearest // 20 == np.arange(60)[:, None] // 20).all()
    np.testing.assert_array_equal(hashed.encode(texts), vectors)


def test_hashed_vectors_keep_the_inner_products_of_tf_idf(monkeypatch):
    """Of full rank, the SVD is a rotation: inner products are those of scikit-learn's TF-IDF on the same counts."""
    from sklearn.feature_extraction.text import TfidfTransformer

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["ant", "bee", "cat", "dog", "elk", "fox"], 6)) for _ in range(30)]
    offsets, columns, counts = hashed._features(texts)
    dense = np.zeros((30, hashed.FEATURES))
    dense[np.repeat(np.arange(30), np.diff(offsets)), columns] = counts
    used = dense[:, dense.any(0)]
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(used).toarray()
    vectors = hashed.encode(texts)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-4)
    monkeypatch.setattr(hashed, "FITTED", 10)  # vectors of all texts from a sample of them
    sampled = hashed.encode(texts)
    assert sampled.shape[0] == 30 and np.isfinite(sampled).all()


def test_hashed_accepts_a_text_without_words():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vectors = text_vectors(["a b", "!!!", "c"], "hashed")
    assert np.isfinite(vectors).all() and not vectors[1].any()


def test_the_bar_needs_a_terminal(encoder, monkeypatch, capfd):
    text_vectors([str(i) for i in range(text.MANY)], "any", cache=False)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(text.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(os.environ, "FORCE_COLOR", "1")
    text_vectors([str(i) for i in range(text.MANY)], "any", cache=False)
    assert "embedding texts" in capfd.readouterr().err
