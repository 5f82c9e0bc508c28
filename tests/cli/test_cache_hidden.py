"""The cached hidden states are those that the policy is evaluated by."""

import functools

import jax
import numpy as np

from eosjax.data.samples.loader import EvalLoader
from eosjax.models.heads import EosHead
from eosjax.models.parts import split_params
from eosjax.runs.data import open_data
from eosjax.runs.hidden import open_cache
from eosjax.runs.load import load_run
from eosjax.runs.policy_source import PolicySource
from eosjax.training.state import make_learner
from eosjax.training.step import predict


def test_heads_on_the_cache_say_what_the_policy_says(run, trained, labels, tmp_path, tiny):
    status, out, err = run("cache-hidden", "--checkpoint", trained, "--out", tmp_path / "cache")
    assert (status, err) == (0, "")
    assert f"{sum(tiny.lengths)} steps of 8 episodes (3 held out)" in out
    cache = open_cache(tmp_path / "cache")

    saved = load_run(trained)
    data = open_data(saved.config, PolicySource.open(saved.config))
    assert data.val is not None
    params = split_params(saved.params)
    evaluate = jax.jit(functools.partial(predict, make_learner(saved.config, saved.vla_config)))
    logits = EosHead(8).apply({"params": saved.params["eos_head"]}, cache.hidden)
    seen = 0
    for source in (data.train, data.val):
        held_out = source is data.val
        for batch in EvalLoader(source, 4):
            real = batch.key >= 0
            frames = source.anchors[batch.key[real]]  # every frame is labelled, so that the cache has them all, in order
            np.testing.assert_allclose(logits[frames], evaluate(*params, batch).eos_logits[real], rtol=1e-4, atol=1e-5)
            assert np.array_equal(cache.columns.valid(cache.chunk)[frames], batch.valid[real])
            assert np.array_equal(cache.columns.labels(cache.chunk)[frames], batch.eos[real] > 0.5)
            assert (cache.columns.held_out[cache.columns.episode_of[frames]] == held_out).all()
            seen += real.sum()
    assert seen == len(cache.hidden)
    for name in ("gripper", "proprio"):
        assert np.array_equal(getattr(cache.columns, name), getattr(data.mixture, name)[: len(cache.hidden)])
    assert np.array_equal(cache.columns.episode_starts, data.mixture.episode_starts)
    assert (cache.facts["step"], cache.facts["batch_size"], cache.facts["eos_hidden_dim"]) == (2, 4, 8)

    status, _, err = run("cache-hidden", "--checkpoint", trained, "--out", tmp_path / "cache")
    assert (status, "new or empty" in err) == (2, True)
    labels.rename(labels.with_name("moved.json"))
    assert "labels" in run("cache-hidden", "--checkpoint", trained, "--out", tmp_path / "other")[2]
    assert not (tmp_path / "other").exists()
    flags = ("--substep_labels_path", labels.with_name("moved.json"))
    assert run("cache-hidden", "--checkpoint", trained, "--out", tmp_path / "other", *flags)[0] == 0
    assert open_cache(tmp_path / "other").facts["fingerprint"] == cache.facts["fingerprint"]
    assert "no checkpoint of step 1" in run("cache-hidden", "--checkpoint", trained, "--out", tmp_path / "x", "--step", "1")[2]
