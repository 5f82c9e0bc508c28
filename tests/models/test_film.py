"""FiLM: what it does to the vision features against NumPy and torch, which words it hears, and the file that it is kept in."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from eosjax.models.film import ENCODERS, FiLM, join_film, mean_words, split_film
from eosjax.models.hf import film, weights
from eosjax.models.hf.adapter import export_adapter, import_adapter, target_modules
from eosjax.models.hf.adapter_config import AdapterConfig
from eosjax.models.openvla import OpenVLA

NEEDS_TORCH = "torch is not installed (extra `parity`)"
EMPTY, PLACEHOLDERS = 5, slice(6, 10)  # places in the text of `inputs`
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def config(tiny):
    return dataclasses.replace(tiny, film=True)


@pytest.fixture(scope="module")
def params(config, inputs, draw):
    return draw(OpenVLA(config), inputs)["params"]


@pytest.fixture(scope="module")
def look(config, params, inputs):
    """Function of ids and mask: the patch embeddings and the hidden states of the actions."""

    @jax.jit(compiler_options=QUICK)
    def compiled(ids, mask):
        arguments = (inputs[0], ids, mask, inputs[3])
        apply = OpenVLA(config).apply
        return apply({"params": params}, *arguments, method="observe"), apply({"params": params}, *arguments)

    return lambda ids, mask: jax.device_get(compiled(ids, mask))


def test_scales_and_shifts_by_the_words():
    rng = np.random.default_rng(0)
    x, words = rng.standard_normal((2, 5, 4)).astype(np.float32), rng.standard_normal((2, 3)).astype(np.float32)
    shapes = jax.eval_shape(FiLM("float32").init, jax.random.key(0), x, words)["params"]
    p = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    scale, shift = (words @ p[name]["kernel"] + p[name]["bias"] for name in ("scale", "shift"))
    np.testing.assert_allclose(FiLM("float32").apply({"params": p}, x, words), x * (1 + scale[:, None]) + shift[:, None], atol=1e-5)


def test_fresh_film_changes_no_bit():
    x, words = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32), np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(FiLM("float32").init_with_output(jax.random.key(0), x, words)[0], x)


def test_mean_is_over_the_seen_words_and_taken_in_float32():
    text = np.array([[[1.0], [2.0], [100.0]]], np.float32)
    np.testing.assert_allclose(mean_words(text, np.array([[True, True, False]])), [[1.5]])
    many = np.ones((1, 1000, 1), jax.numpy.bfloat16)
    mean = mean_words(jax.numpy.asarray(many), np.ones((1, 1000), bool))
    assert mean.dtype == jax.numpy.bfloat16
    assert float(mean[0, 0]) == 1.0


def test_film_splits_off_and_joins(params):
    base, layers = split_film(params)
    assert {name: sorted(tree) for name, tree in layers.items()} == {name: ["scale", "shift"] for name in ENCODERS}
    chex.assert_shape(layers["fused_featurizer"]["scale"]["kernel"], (2, 16, 12))
    assert not any("film" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(base))
    chex.assert_trees_all_equal(join_film(base, layers), params)


def test_film_is_float32_and_carries_no_lora(config, inputs):
    half = OpenVLA(dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16", lora_rank=2))
    hidden, variables = jax.eval_shape(lambda: half.init_with_output(jax.random.key(0), *inputs))
    assert hidden.dtype == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(split_film(variables["params"])[1])} == {"float32"}
    assert "film" not in variables["lora"]["vision_backbone"]["featurizer"]["blocks"]


def test_hears_the_prompt_and_the_stop_token_but_no_placeholder_and_no_padding(look, inputs):
    _, ids, mask, _ = inputs
    patches, _ = look(ids, mask)
    patches = patches[:, :8]

    def moved(place):
        other = ids.copy()
        other[:, place] = (other[:, place] + 1) % 20
        return np.abs(look(other, mask)[0][:, :8] - patches).max((1, 2))

    for place in (0, 1, EMPTY, 10):
        assert (moved(place) > 1e-4).all(), place
    np.testing.assert_array_equal(moved(PLACEHOLDERS), 0)
    assert moved(3)[0] > 1e-4  # a word of the first prompt, padding of the second
    assert moved(3)[1] == 0


def test_padding_changes_nothing(look, inputs):
    _, ids, mask, _ = inputs
    at = np.full(3, EMPTY)
    for got, expected in zip(look(np.insert(ids, at, 7, axis=1), np.insert(mask, at, False, axis=1)), look(ids, mask), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_words_are_refused_without_film_and_missed_with_it(tiny, config, params, inputs):
    words = np.ones((2, 16), np.float32)
    with pytest.raises(ValueError, match=r"words: VLAConfig.film is False; got \(2, 16\)"):
        jax.eval_shape(lambda: OpenVLA(tiny).apply({"params": params}, inputs[0], words, method="vision_features"))
    with pytest.raises(ValueError, match="words: VLAConfig.film is True; got none"):
        jax.eval_shape(lambda: OpenVLA(config).apply({"params": params}, inputs[0], method="vision_features"))


def vision_variables(config, seed=0):
    """Random variables of the vision backbone, as `import_film` returns them."""
    rng = np.random.default_rng(seed)
    shapes = weights.abstract_variables(config)
    vision = {name: {"vision_backbone": shapes[name]["vision_backbone"]} for name in ("params", "lora") if name in shapes}
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), vision)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_file_round_trips(config, rank, prefix):
    config = dataclasses.replace(config, lora_rank=rank)
    variables = vision_variables(config)
    tensors = {prefix + name: array for name, array in film.export_film(variables, config, {})}
    back = film.import_film(tensors, config)
    chex.assert_trees_all_equal(back, variables)
    with pytest.raises(ValueError, match="FiLM vision backbone: the tensors do not fit"):
        film.import_film(tensors, dataclasses.replace(config, lora_rank=2 - rank))


def test_the_branches_of_the_file_have_the_scale_of_the_original(config):
    """It is min(rank, 16) / rank there, whatever that of the run is: the file does not say."""
    config = dataclasses.replace(config, lora_rank=2, lora_scaling=4.0)
    variables = vision_variables(config)
    tensors = dict(film.export_film(variables, config, {}))
    name = "vision_backbone.featurizer.blocks.1.block.attn.qkv.lora_B.default.weight"
    ours = variables["lora"]["vision_backbone"]["featurizer"]["blocks"]["attn"]["qkv"]["b"][1]
    np.testing.assert_array_equal(tensors[name], 4 * ours.T)
    chex.assert_trees_all_equal(film.import_film(tensors, config), variables)


def test_base_checkpoint_and_adapter_with_film(config):
    """The base checkpoint knows nothing of FiLM; the adapter has the names of the wrapped backbone."""
    config = dataclasses.replace(config, lora_rank=2)
    variables = vision_variables(config)
    shapes = weights.abstract_variables(config)
    everything = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    names = {name for name, _ in weights.export_weights(everything["params"], config)}
    assert names == {name for name, _ in weights.export_weights(everything["params"], dataclasses.replace(config, film=False))}
    adapter = dict(export_adapter(everything["lora"] | variables["lora"], config))
    name = "base_model.model.vision_backbone.vision_backbone.fused_featurizer.blocks.1.block.mlp.fc2.lora_A.weight"
    assert adapter[name].shape == (2, 16)
    assert "base_model.model.language_model.model.layers.0.mlp.up_proj.lora_B.weight" in adapter
    unused = name.replace("blocks.1", "blocks.2")
    settings = AdapterConfig.from_json({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": target_modules(config)})
    back = import_adapter(adapter | {unused: adapter[name]}, config, settings)
    chex.assert_trees_all_equal(back.lora, everything["lora"] | variables["lora"])
    assert back.notes == []
    del adapter[name], adapter[name.replace("lora_A", "lora_B")]
    with pytest.raises(weights.WeightsError, match=r"not in the checkpoint \(2\):\n  base_model.*vision_backbone.vision_backbone.fused"):
        import_adapter(adapter, config, settings)


def torch_backbone(torch, config):
    """The vision backbone of OpenVLA-OFT with timm's names, whole, without FiLM; SigLIP has a pooling head that is not run."""
    from benchmarks.torch_policy import Block, Mlp, ViT

    nn = torch.nn

    class Pool(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.latent = nn.Parameter(torch.zeros(1, 1, width))
            self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
            self.norm, self.mlp = nn.LayerNorm(width), Mlp(width, 2 * width)

    class Encoder(ViT):
        def __init__(self, vit):
            super().__init__(vit)
            self.blocks, self.norm = nn.Sequential(*(Block(vit) for _ in range(vit.depth))), nn.LayerNorm(vit.width)
            if not vit.class_token:
                self.attn_pool = Pool(vit.width)

        def forward(self, images, words):
            x = self.embed(images)
            for block in self.blocks[:-1]:  # the last one is not used
                x = block(x, words)
            return x[:, -self.vit.num_patches :]

    backbone = nn.Module()
    backbone.featurizer, backbone.fused_featurizer = Encoder(config.dino), Encoder(config.siglip)
    return backbone


def wrap(torch, backbone, width):
    """Puts FiLM into each block of both encoders, as OpenVLA-OFT's wrapper does."""
    nn = torch.nn

    class FilmBlock(nn.Module):
        def __init__(self, block, vit):
            super().__init__()
            self.block, self.scale, self.shift = block, nn.Linear(width, vit.width), nn.Linear(width, vit.width)

        def forward(self, x, words):
            x = x + self.block.ls1(self.block.attn(self.block.norm1(x)))
            x = x * (1 + self.scale(words)[:, None]) + self.shift(words)[:, None]
            return x + self.block.ls2(self.block.mlp(self.block.norm2(x)))

    for encoder in (backbone.featurizer, backbone.fused_featurizer):
        encoder.blocks = nn.Sequential(*(FilmBlock(block, encoder.vit) for block in encoder.blocks))
    wrapper = nn.Module()
    wrapper.vision_backbone = backbone
    return wrapper


@pytest.mark.parametrize("rank", [0, 2])
def test_features_and_file_are_those_of_the_original(config, inputs, rank):
    """The wrapped torch backbone loads the exported file strictly and sees what ours sees, with and without adapters."""
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    pytest.importorskip("transformers", reason="transformers is not installed (extra `parity`)")
    config = dataclasses.replace(config, lora_rank=rank)
    variables = vision_variables(config)
    backbone = torch_backbone(torch, config)
    base = {f"vision_backbone.{name}": tensor.numpy() for name, tensor in backbone.state_dict().items()}
    if rank:
        peft = pytest.importorskip("peft", reason="peft is not installed (extra `parity`)")
        targets = ["qkv", "proj", "fc1", "fc2", "q", "kv"]
        backbone = peft.get_peft_model(backbone, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)).base_model.model
    wrapper = wrap(torch, backbone, config.llama.width)
    tensors = {name: torch.tensor(array) for name, array in film.export_film(variables, config, base)}
    wrapper.load_state_dict(tensors, strict=True)
    wrapper.eval()

    embedding = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    _, ids, mask, _ = inputs
    spoken = mask.copy()
    spoken[:, PLACEHOLDERS] = False
    words = np.stack([embedding[row[seen]].mean(0) for row, seen in zip(ids, spoken, strict=True)])
    pixels = torch.tensor(inputs[0] / 255, dtype=torch.float32).permute(0, 1, 4, 2, 3)
    normalised = (pixels - 0.5) / 0.5  # both encoders of `tiny` have the mean and the deviation of SigLIP
    with torch.no_grad():
        views = [
            torch.cat(
                [encoder(normalised[:, v], torch.tensor(words)) for encoder in (backbone.featurizer, backbone.fused_featurizer)], dim=-1
            )
            for v in range(2)
        ]
    expected = torch.cat(views, dim=1)
    seen = mean_words(embedding[ids], spoken)
    got = jax.jit(lambda: OpenVLA(config).apply(variables, inputs[0], seen, method="vision_features"))()
    np.testing.assert_allclose(got, expected, atol=5e-5)
