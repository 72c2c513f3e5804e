"""RPG: its loss against a plain rendering, its tied tables, the number for repeated items, its two ways to decode."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from small import tables, write
from torch.nn import functional as F

from asymrec import Dataset
from asymrec.config import Recipe
from asymrec.data import Examples, Sequences
from asymrec.errors import ConfigError
from asymrec.evaluation import evaluate
from asymrec.models import RPG
from asymrec.models.repeat import seen_weight
from asymrec.models.rpg import Network
from asymrec.nn import residual
from asymrec.nn.residual import ResidualHeads
from asymrec.runs import fit_run
from asymrec.training.listener import Listener

SMALL = {
    "text": [], "views": ["vector"], "opq_codes": 4, "opq_codewords": 16, "opq_rounds": 2, "width": 16, "ffn": 32, "heads": 2, "layers": 1,
    "epochs": 2, "batch": 256, "dropout": 0.1, "learning_rate": 1e-2, "precision": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset():
    return Dataset.read(*tables())


@pytest.fixture(scope="module")
def fitted(dataset):
    return RPG(**SMALL | {"epochs": 12}).fit(dataset)


def heads(n=37, heads=5, width=24, words=11, temperature=0.03):
    """Blocks away from their start at zero, states, tables and target codes."""
    generator = torch.Generator().manual_seed(0)
    module = ResidualHeads(heads, width, temperature)
    with torch.no_grad():
        module.weight.normal_(0, width**-0.5, generator=generator)
        module.bias.normal_(generator=generator)
    states, tables = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((n, width), (heads, words, width)))
    return module, states, tables, torch.randint(words, (n, heads), generator=generator)


def plain_logits(module, states, tables):
    """The paper's equations, a head at a time: [n, words] each."""
    for weight, bias, table in zip(module.weight, module.bias, tables):
        y = states + F.silu(F.linear(states, weight, bias))
        yield F.cosine_similarity(y.unsqueeze(1), table.unsqueeze(0), dim=-1) / module.temperature


def plain_loss(module, states, tables, codes):
    return sum(F.cross_entropy(logits, codes[:, h]) for h, logits in enumerate(plain_logits(module, states, tables))) / len(tables)


def gradients(loss, module, states, tables):
    return torch.autograd.grad(3 * loss, [states, module.weight, module.bias, tables])  # 3: what comes from upstream is passed on


@pytest.mark.parametrize("chunk", [1, 2 * 37 * 24, 1 << 20])
def test_loss_and_gradients_are_those_of_a_loop_over_heads(monkeypatch, chunk):
    monkeypatch.setattr(residual, "CHUNK", chunk)
    module, states, tables, codes = heads()
    ours, theirs = module.loss(states, tables, codes, torch.float32), plain_loss(module, states, tables, codes)
    assert abs(ours.item() - theirs.item()) < 1e-5
    for one, other in zip(gradients(ours, module, states, tables), gradients(theirs, module, states, tables)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_the_same_within_its_rounding():
    """Compiled blocks and softmax; products of bfloat16, sums of float32."""
    module, states, tables, codes = heads(n=300, width=64, words=32, temperature=0.1)
    ours, theirs = module.loss(states, tables, codes, torch.bfloat16), plain_loss(module, states, tables, codes)
    assert abs(ours.item() - theirs.item()) < 3e-3
    for one, other in zip(gradients(ours, module, states, tables), gradients(theirs, module, states, tables)):
        assert (one - other).norm() < 0.01 * other.norm()


def test_log_probabilities_are_those_of_the_plain_rendering():
    module, states, tables, _ = heads()
    expected = torch.stack([logits.log_softmax(-1) for logits in plain_logits(module, states, tables)], 1)
    torch.testing.assert_close(module.log_probabilities(states, tables), expected, rtol=1e-4, atol=1e-4)


def test_blocks_start_as_the_state_itself():
    _, states, tables, _ = heads()
    fresh = ResidualHeads(5, 24, 0.03)
    cosine = torch.einsum("nd,hkd->nhk", F.normalize(states, dim=-1), F.normalize(tables, dim=-1))
    torch.testing.assert_close(fresh.log_probabilities(states, tables), (cosine / 0.03).log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_one_table_reads_and_writes():
    """An item is the mean of its codes' embeddings, and a target's codes pull on the very same embeddings."""
    codes = torch.tensor([[0, 1], [1, 1], [2, 0]])
    network = Network(Recipe.of(None, opq_codewords=4, width=8, heads=2, ffn=8, layers=1, temperature=0.1), 5, codes)
    read = torch.stack([network.embedding[0, codes[:, 0]], network.embedding[1, codes[:, 1]]]).mean(0)
    torch.testing.assert_close(network.read(torch.arange(3)), network.norm(read))
    tables = [name for name, value in network.named_parameters() if value.shape[:2] == (2, 4)]
    assert tables == ["embedding"]
    network.head.loss(torch.randn(3, 8), network.embedding, codes, torch.float32).backward()
    assert (network.embedding.grad.abs().sum(-1) > 0).all()


def test_settings_of_the_paper_are_the_models_own(dataset):
    recipe = RPG().recipe
    assert (recipe.network.width, recipe.training.temperature, recipe.opq.opq_codes) == (448, 0.03, 32)
    with pytest.raises(ConfigError, match="temperature"):
        RPG(temperature=None)


def test_scores_are_mean_log_probabilities_of_codes(fitted, dataset):
    histories = dataset.sequences.take(np.arange(9))
    with torch.inference_mode():
        states = fitted._last_states(histories)
        tables = fitted.network.head.log_probabilities(states, fitted.network.embedding).numpy()
    codes = fitted.catalogue()[1]
    expected = np.mean([tables[:, h][:, codes[:, h]] for h in range(codes.shape[1])], axis=0)
    scores = fitted.scores(histories)
    seen = np.zeros(scores.shape, bool)
    seen[histories.owners, histories.items] = True
    np.testing.assert_allclose(scores[~seen], expected[~seen], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores[seen] - expected[seen], fitted.network.repeat.item(), rtol=1e-4, atol=1e-5)


class TestRepeat:
    @staticmethod
    def examples(targets):
        """Everybody's history is items 0 and 1, of 4."""
        users = np.arange(len(targets), dtype=np.int32)
        return Examples(users, Sequences.of([[0, 1]] * len(targets)), Sequences.of([[target] for target in targets]))

    @staticmethod
    def flat(histories):
        return np.full((len(histories), 4), -1.5, np.float32)

    def test_it_is_the_maximum_of_the_likelihood(self):
        """Flat scores, 300 of 400 targets seen before: of probability 2 e^r / (2 e^r + 2), r = log(.75 / .25), and nearly so."""
        weight = seen_weight(self.flat, self.examples([0] * 150 + [1] * 150 + [2] * 100), 4, seed=0)
        assert weight == pytest.approx(np.log(300.5 / 100.5), abs=1e-3)

    def test_it_is_in_the_units_of_the_scores(self):
        """Targets drawn from softmax(4 score + 2 [seen]): 2 / 4 is what is added to a score."""
        rng = np.random.default_rng(0)
        by_first = rng.normal(size=(12, 12)).astype(np.float32)
        histories = Sequences.of(rng.integers(12, size=(4000, 3)))
        scores, seen = by_first[histories.items[::3]], np.zeros((4000, 12))
        seen[histories.owners, histories.items] = 1
        targets = (4 * scores + 2 * seen + rng.gumbel(size=scores.shape)).argmax(1)
        examples = Examples(np.arange(4000, dtype=np.int32), histories, Sequences.of(targets[:, None]))
        weight = seen_weight(lambda some: by_first[some.items[::3]], examples, 12, seed=0)
        assert weight == pytest.approx(0.5, abs=0.05)

    def test_it_is_finite_where_nobody_or_everybody_comes_back(self):
        never, always = (seen_weight(self.flat, self.examples([target] * 50), 4, seed=0) for target in (3, 0))
        assert -5 < never < -3 and 3 < always < 5

    def test_without_histories_it_is_nothing(self):
        users = np.arange(2, dtype=np.int32)
        assert seen_weight(self.flat, Examples(users, Sequences.of([[], []]), Sequences.of([[1], [2]])), 4, seed=0) == 0

    def test_users_who_return_and_users_who_do_not(self):
        assert RPG(**SMALL).fit(Dataset.read(*tables())).network.repeat.item() < -0.3
        rng = np.random.default_rng(0)
        pairs = [rng.choice(120, 2, replace=False) + 100 for _ in range(150)]
        items = [int(pair[step % 2]) for pair in pairs for step in range(8)]
        interactions = pa.table({"user_id": np.repeat(np.arange(150), 8), "item_id": items, "timestamp": np.arange(1200)})
        assert RPG(**SMALL).fit(Dataset.read(interactions, tables()[1])).network.repeat.item() > 0.3

    def test_the_rest_of_the_model_is_the_papers(self, dataset, fitted):
        """Everything but the number is as without it."""
        plain = RPG(**SMALL | {"epochs": 12, "repeat": False}).fit(dataset)
        ours, theirs = fitted.network.state_dict(), plain.network.state_dict()
        assert set(ours) - set(theirs) == {"again"}
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


class TestGraph:
    def test_a_beam_over_everything_is_exact(self, dataset, fitted):
        graph = RPG(**SMALL | {"epochs": 12, "decode": "graph", "graph_beam": 120}).fit(dataset)
        np.testing.assert_allclose(graph.scores(dataset.sequences), fitted.scores(dataset.sequences), rtol=1e-5, atol=1e-6)

    def test_what_is_not_visited_is_never_recommended(self, dataset, fitted):
        model = RPG(**SMALL | {"epochs": 12, "decode": "graph", "graph_beam": 3, "graph_neighbours": 4, "graph_steps": 2}).fit(dataset)
        scores, exact = model.scores(dataset.sequences), fitted.scores(dataset.sequences)
        visited = scores > -np.inf
        assert visited.any(1).all() and not visited.all(1).any()
        np.testing.assert_allclose(scores[visited], exact[visited], rtol=1e-5, atol=1e-6)
        ids, values = model.recommend([[107]], k=120)
        assert 0 < len(ids[0]) < 119 and np.isfinite(values[0]).all()

    def test_a_loaded_model_walks_the_same_graph(self, dataset, tmp_path):
        model = RPG(**SMALL | {"decode": "graph", "graph_beam": 3, "graph_neighbours": 4}).fit(dataset)
        model.save(tmp_path / "run")
        np.testing.assert_array_equal(RPG.load(tmp_path / "run").scores(dataset.sequences), model.scores(dataset.sequences))


def test_the_command_line_hears_of_every_epoch(tmp_path):
    """A fit of a run folder hands over what the model says it takes: the listener among it, and the checkpoint."""
    heard = []

    class Hear(Listener):
        def epoch(self, log):
            heard.append((tmp_path / "run" / "checkpoint" / "training").is_dir())

    fit_run(write(tmp_path / "data", *tables()), tmp_path / "run", Recipe.of(None, **SMALL), model="rpg", listener=Hear())
    assert heard == [True] * SMALL["epochs"]


def test_it_learns_the_circle(dataset):
    """Users walk along a circle of 120 items, one to three steps at a time: chance is 10 / 120."""
    model = RPG(**SMALL | {"epochs": 40}).fit(dataset)
    split = dataset.split()
    found = evaluate(model, split.test, dataset.n_items, split.train_counts(dataset.n_items)).metrics["kept"]["recall@10"]
    assert found > 0.6
