"""Small frame stores for the data tests."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosjax.data.frames import FrameStore, write_store
from eosjax.data.loader import SampleSource
from eosjax.data.rlds import Episode
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import compute_stats
from eosjax.data.substeps import Labels
from eosjax.data.tokens import demo_tokenizer


def _encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """`pixels` u8 [h w 3] as the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _make_episodes(lengths, spec: DatasetSpec, picture=None):
    """Episodes whose images, actions and proprio tell the episode and the step."""
    for episode, length in enumerate(lengths):
        steps = np.arange(length)
        views = tuple(
            [picture or _encoded(np.full((8, 8, 3), (episode, step, view), np.uint8)) for step in steps]
            for view in range(len(spec.image_keys))
        )
        actions = np.stack([episode + steps / 1000] * spec.action_size, axis=1).astype(np.float32)
        proprio = np.stack([episode * 100 + steps] * spec.proprio_size, axis=1).astype(np.float32)
        yield Episode(episode, views, actions, proprio, f"Task {episode % 2}", f"{episode}.hdf5")


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """A function (lengths, picture=None) -> `FrameStore` in a folder of its own, without TensorFlow."""

    def make(lengths, picture=None) -> FrameStore:
        folder = tmp_path_factory.mktemp("store")
        write_store(_make_episodes(lengths, DatasetSpec(), picture), "made", folder)
        return FrameStore(folder)

    return make


@pytest.fixture(scope="session")
def make_source(make_store):
    """A function (lengths, ends=frames, …) -> `SampleSource` over such a store."""

    def make(lengths, ends=(), chunk=8, picture=None, episodes=None, **options) -> SampleSource:
        spec = DatasetSpec(chunk=chunk)
        store = make_store(lengths, picture)
        flags = np.zeros(store.num_frames, bool)
        flags[list(ends)] = True
        return SampleSource(
            store=store,
            labels=Labels((np.arange(store.num_frames) % 3).astype(np.int32), ["close it", "open it", "push it"], flags),
            stats=compute_stats(store.actions, store.proprio, store.num_episodes, spec.action_mask),
            tokenizer=demo_tokenizer(),
            spec=spec,
            episodes=np.arange(len(lengths)) if episodes is None else np.asarray(episodes),
            **({"image_size": 8, "num_images": 2, "use_proprio": True} | options),
        )

    return make


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with the recorded arrays of the PyTorch original, beside the checkout."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "reference" / "golden"
    if not folder.is_dir():
        pytest.skip(f"recorded arrays not found: {folder}")
    return folder
