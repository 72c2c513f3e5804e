"""The exported step of one request: the numbers of the model, and only those of its own graph. And the last states that it is made of."""

import numpy as np
import pytest
import torch
from small import SETTINGS, tables

from asymrec import Dataset
from asymrec.data import Sequences
from asymrec.data.batches import pack
from asymrec.errors import ConfigError
from asymrec.models import MODELS

SMALL = SETTINGS | {"history": 9, "layers": 2}
FITTED = {}


@pytest.fixture(scope="module")
def fitted():
    dataset = Dataset.read(*tables(users=60, items=50))

    def fit(name, **settings):
        key = name, *settings.items()
        if key not in FITTED:
            FITTED[key] = MODELS[name](**{**SMALL, "epochs": 1, **settings}).fit(dataset)
        return FITTED[key]

    return fit


ITEMS = [[3], [4, 5, 4], [1, 2, 3, 4], list(range(20)), [7, 9, 11]]
HISTORIES = Sequences.of(ITEMS)
TIMED = Sequences.of(ITEMS, [[1_000_000 + 60 * (user + place) for place in range(len(items))] for user, items in enumerate(ITEMS)])


@pytest.mark.parametrize("histories", [HISTORIES, TIMED], ids=["no times", "times"])
@pytest.mark.parametrize("name", ["asymrec", "sasrec", "sasrec+content", "rpg", "hstu"])
def test_last_states_are_those_of_whole_histories(fitted, name, histories):
    model = fitted(name)
    batch = pack(histories, None, model.history)
    with torch.inference_mode():
        whole = model.network(batch)[torch.from_numpy(np.cumsum(batch.length) - 1)]
        torch.testing.assert_close(model._last_states(histories), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "settings"), [("sasrec", {"repeat": False}), ("asymrec", {"write": "vectors"})])
def test_the_graph_gives_the_same_scores(fitted, name, settings, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = fitted(name, **settings)
    alone = [histories.take(np.array([row])) for histories in (HISTORIES, TIMED) for row in range(len(ITEMS))]
    before, together = [model.scores(one) for one in alone], model.scores(HISTORIES)
    model.export(tmp_path / "step.onnx")
    model.use(tmp_path / "step.onnx")
    used = []
    session, model._session = model._session, lambda rows, time: used.append(len(rows)) or session(rows, time)
    for one, expected in zip(alone, before):
        np.testing.assert_allclose(model.scores(one), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.scores(HISTORIES), together)
    assert used == 2 * [1, 3, 4, 9, 3]  # single histories alone, cut to what the model reads
    assert (np.abs(before[0] - before[len(ITEMS)]).max() > 1e-4) == model.reads_times
    model._freeze()
    assert model._session is None  # other weights, another graph


def test_another_models_graph_is_refused(fitted, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, other = fitted("sasrec"), fitted("sasrec", seed=1)
    other.export(tmp_path / "step.onnx")
    with pytest.raises(ConfigError, match="another model"):
        model.use(tmp_path / "step.onnx")
    assert model._session is None
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    for path in ("no.onnx", "missing.onnx"):
        with pytest.raises(ConfigError, match=path):
            model.use(tmp_path / path)


@pytest.mark.parametrize(("name", "settings"), [("hstu", {}), ("rpg", {}), ("asymrec", {"objective": "heads"})])
def test_what_has_no_such_step_says_so(fitted, name, settings, tmp_path):
    with pytest.raises(ConfigError, match="no step that can be exported"):
        fitted(name, **settings).export(tmp_path / "step.onnx")
