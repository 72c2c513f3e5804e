"""The text encoder against torch's own transformer layers with the same weights, and against sentence-transformers' numbers."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from asymrec.errors import VectorError
from asymrec.vectors import bert
from asymrec.vectors.bert import BertEncoder
from asymrec.vectors.encoders import find_encoder, minilm_folder

D, HEADS, LAYERS, WORDS = 24, 3, 2, [f"w{number}" for number in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random small BERT: its folder, and torch's layers with the same weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    layers = [
        nn.TransformerEncoderLayer(D, HEADS, 2 * D, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True)
        for _ in range(LAYERS)
    ]
    tables = {name: torch.randn(size, D) for name, size in (("word", len(WORDS) + 3), ("position", 16), ("token_type", 2))}
    norm = nn.LayerNorm(D, eps=1e-6)
    for layer in [norm, *layers]:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
    weights = {f"bert.embeddings.{name}_embeddings.weight": table for name, table in tables.items()}
    weights |= {f"bert.embeddings.LayerNorm.{name}": value for name, value in norm.state_dict().items()}
    for number, layer in enumerate(layers):
        places = {
            "attention.output.dense": layer.self_attn.out_proj,
            "attention.output.LayerNorm": layer.norm1,
            "intermediate.dense": layer.linear1,
            "output.dense": layer.linear2,
            "output.LayerNorm": layer.norm2,
        }
        pairs = {place: (module.weight, module.bias) for place, module in places.items()}
        projections = zip(("query", "key", "value"), layer.self_attn.in_proj_weight.chunk(3), layer.self_attn.in_proj_bias.chunk(3))
        pairs |= {f"attention.self.{name}": (weight, bias) for name, weight, bias in projections}
        for place, (weight, bias) in pairs.items():
            weights[f"bert.encoder.layer.{number}.{place}.weight"] = weight
            weights[f"bert.encoder.layer.{number}.{place}.bias"] = bias
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    config = {"model_type": "bert", "hidden_act": "gelu", "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2} | {w: 3 + i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))

    @torch.inference_mode()
    def reference(text, max_tokens=16, pooling="mean"):
        ids = torch.tensor([1, *(3 + WORDS.index(word) for word in text.split()[: max_tokens - 2]), 2])
        x = norm(tables["word"][ids] + tables["position"][: len(ids)] + tables["token_type"][0])[None]
        for layer in layers:
            x = layer(x)
        x = x[0].mean(0) if pooling == "mean" else x[0, 0]
        return (x / x.norm()).numpy()

    return folder, reference


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 25))) for _ in range(60)]


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_equal_to_torchs_layers_however_batched(model, texts, budget, monkeypatch):
    folder, reference = model
    monkeypatch.setattr(bert, "BATCH_TOKENS", budget)
    done = []
    vectors = BertEncoder(folder, "float32").encode(texts, 128, done.append)  # the model itself reads 16 tokens at most
    np.testing.assert_allclose(vectors, [reference(text) for text in texts], atol=2e-6)
    assert sum(done) == len(texts)


def test_reads_no_further_than_max_tokens(model, texts):
    folder, reference = model
    vectors = BertEncoder(folder, "float32").encode(texts, 8)
    np.testing.assert_allclose(vectors, [reference(text, 8) for text in texts], atol=2e-6)


def test_bfloat16_is_close(model, texts):
    folder, _ = model
    exact, rounded = (BertEncoder(folder, precision).encode(texts, 128) for precision in ("float32", "bfloat16"))
    assert (exact * rounded).sum(1).min() > 0.999
    assert (exact != rounded).any()


def test_threads_do_not_matter(model, texts, monkeypatch):
    monkeypatch.setattr(bert, "BATCH_TOKENS", 40)
    encoder = BertEncoder(model[0], "float32")
    alone = encoder.encode(texts, 128)
    try:
        torch.set_num_threads(3)
        np.testing.assert_array_equal(encoder.encode(texts, 128), alone)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def copy(folder, to, **changes):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_pooling_of_the_first_token(model, texts, tmp_path):
    folder = copy(model[0], tmp_path / "first")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert BertEncoder.fits(folder)
    vectors = BertEncoder(folder, "float32").encode(texts, 128)
    np.testing.assert_allclose(vectors, [model[1](text, pooling="first") for text in texts], atol=2e-6)


def test_only_what_is_computed_exactly_fits(model, tmp_path):
    assert BertEncoder.fits(copy(model[0], tmp_path / "same"))
    assert not BertEncoder.fits(copy(model[0], tmp_path / "other", model_type="mpnet"))
    assert not BertEncoder.fits(copy(model[0], tmp_path / "act", hidden_act="relu"))
    assert not BertEncoder.fits(tmp_path)
    dense = copy(model[0], tmp_path / "dense")
    (dense / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    assert not BertEncoder.fits(dense)
    pooled = copy(model[0], tmp_path / "pooled")
    (pooled / "1_Pooling").mkdir()
    (pooled / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    assert not BertEncoder.fits(pooled)


def test_damaged_and_missing_folders(model, tmp_path):
    damaged = copy(model[0], tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(VectorError, match=r"cannot read the encoder in .*damaged"):
        find_encoder(str(damaged)).encode(["w1"], 8, lambda count: None)
    with pytest.raises(VectorError, match="no encoder folder"):
        find_encoder(str(tmp_path / "nothing"))


def test_the_identity_is_the_content(model, tmp_path):
    same, other = copy(model[0], tmp_path / "same"), copy(model[0], tmp_path / "other", layer_norm_eps=1e-5)
    identity = find_encoder(str(model[0])).identity
    assert find_encoder(str(same)).identity == identity
    assert find_encoder(str(other)).identity != identity


def test_minilm_gives_the_numbers_of_sentence_transformers():
    texts = ["OPI Nail Lacquer, Simmer and Shimmer, 0.5-Fluid Ounce. Brand: OPI.", "Crème brûlée — 山", "a"]
    expected = [  # sentence-transformers 6.2, first six of 384
        [-0.0551811, 0.0347984, 0.0140906, 0.0401819, -0.0304672, -0.1095889],
        [0.0294725, 0.0163268, 0.0113004, -0.0128678, -0.0440037, -0.0523689],
        [-0.0364329, 0.0347034, -0.0459598, 0.0343255, -0.0808234, 0.0328385],
    ]
    vectors = BertEncoder(minilm_folder(), "float32").encode(texts, 128)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(vectors[:, :6], expected, atol=1e-5)
