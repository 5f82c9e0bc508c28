"""Small frame stores for the data tests."""

import io

import numpy as np
import pytest
from PIL import Image

from eosjax.data.episode import Episode
from eosjax.data.frames.build import write_store
from eosjax.data.frames.store import FrameStore
from eosjax.data.labels import Labels
from eosjax.data.samples.mixture import LabelledDataset, Mixture, stats_of
from eosjax.data.samples.source import SampleSource
from eosjax.data.samples.tokens import demo_tokenizer
from eosjax.data.specs import DatasetSpec

INSTRUCTIONS = ("close it", "open it", "push it")


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
    """A function (lengths, picture=None, name="made") -> `FrameStore` in a folder of its own, without TensorFlow."""

    def make(lengths, picture=None, name="made") -> FrameStore:
        folder = tmp_path_factory.mktemp("store")
        write_store(_make_episodes(lengths, DatasetSpec(), picture), name, folder)
        return FrameStore(folder)

    return make


@pytest.fixture(scope="session")
def make_dataset(make_store):
    """A function (lengths, ends=frames, labelled=episodes, …) -> `LabelledDataset` over such a store; its spec's `chunk` can be given."""

    def make(lengths, ends=(), labelled=None, weight=1.0, chunk=8, instructions=INSTRUCTIONS, picture=None, name="made") -> LabelledDataset:
        store = make_store(lengths, picture, name)
        flags = np.zeros(store.num_frames, bool)
        flags[list(ends)] = True
        has_labels = np.isin(np.arange(len(lengths)), np.arange(len(lengths)) if labelled is None else labelled)
        ids = (np.arange(store.num_frames) % len(instructions)).astype(np.int32)
        spec = DatasetSpec(chunk=chunk)
        return LabelledDataset(store, spec, Labels(ids, list(instructions), flags, has_labels), stats_of(store, spec), weight)

    return make


@pytest.fixture(scope="session")
def make_source(make_dataset):
    """A function (lengths, ends=frames, …) -> `SampleSource` over one such dataset."""

    def make(lengths, ends=(), chunk=8, picture=None, episodes=None, **options) -> SampleSource:
        mixture = Mixture([make_dataset(lengths, ends, chunk=chunk, picture=picture)])
        return source_over(mixture, episodes, **options)

    return make


def source_over(mixture, episodes=None, **options) -> SampleSource:
    """The samples of some episodes of a mixture, by default of all, at the size of the tests' images."""
    return SampleSource(
        data=mixture,
        tokenizer=demo_tokenizer(),
        episodes=np.arange(mixture.num_episodes) if episodes is None else np.asarray(episodes),
        **({"image_size": 8, "num_images": 2, "use_proprio": True} | options),
    )
