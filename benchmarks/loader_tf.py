"""The TensorFlow half of benchmarks/loader.py: it writes the dataset to read, and reads it with a plain `tf.data` pipeline.

Only child processes of the benchmark import this.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from loader_scenes import SIZE, STEPS, TASK, Episode, episodes
from PIL import Image
from tensorflow_datasets.core.dataset_info import DatasetIdentity

NAME, VERSION = "libero_goal_no_noops", "1.0.0"
CHUNK, TARGET, CROP_AREA = 8, 224, 0.9
SHUFFLE_BUFFER = 10_000


def synthesise(root: Path, frames: int) -> None:
    """Writes a dataset in LIBERO's layout under `root`: TFRecord, two 256-pixel cameras, scenes that compress like camera images."""
    target = root / NAME / VERSION
    target.mkdir(parents=True)
    identity = DatasetIdentity(name=NAME, version=tfds.core.Version(VERSION), data_dir=str(target), module_name=__name__)
    info = tfds.core.DatasetInfo(builder=identity, features=_features())
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=-(-frames // STEPS // 8))
    writer.initialize_splits(["train"])
    for number, episode in enumerate(episodes(frames)):
        steps = [_step(episode, t) for t in range(STEPS)]
        writer.add_examples({"train": [{"steps": steps, "episode_metadata": {"file_path": f"{number}.hdf5"}}]})
    writer.close_all()


def _features() -> Any:
    image = tfds.features.Image(shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding_format="jpeg")
    state = tfds.features.Tensor(shape=(8,), dtype=np.float32)
    action = tfds.features.Tensor(shape=(7,), dtype=np.float32)
    steps = {
        "observation": {"image": image, "wrist_image": image, "state": state},
        "action": action,
        "language_instruction": tfds.features.Text(),
    }
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps), "episode_metadata": {"file_path": tfds.features.Text()}})


def _step(episode: Episode, t: int) -> dict[str, Any]:
    windows = [_jpeg(view[t]) for view in episode.views]
    return {
        "observation": {"image": windows[0], "wrist_image": windows[1], "state": episode.states[t]},
        "action": episode.actions[t],
        "language_instruction": TASK,
    }


def _jpeg(picture: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    file.seek(0)
    return file


def batches(
    root: Path, name: str, prompts: tuple[list[str], np.ndarray], bounds: tuple[np.ndarray, np.ndarray], size: int, start: int, seed: int
) -> Iterator[Any]:
    """Endless batches of `size` samples, from batch `start` on, as a plain pipeline over the same files makes them.

    Episodes are shuffled and repeated, flattened to samples that keep their images encoded, shuffled in a buffer of 10,000, then decoded,
    resized, augmented and batched in parallel. A resumed pipeline skips samples where they are cheapest: behind the shuffle, before the
    images are decoded.

    Args:
        root, name: the dataset.
        prompts: instructions, and the ids of each, i32 [instructions, l].
        bounds: 1 % and 99 % quantiles of the actions, f32 [a] each.
        size: samples in a batch.
        start: batches to skip.
        seed: of shuffling.
    """
    builder = tfds.builder_from_directory(str(root / name / VERSION))
    skip = {key: tfds.decode.SkipDecoding() for key in ("image", "wrist_image")}
    config = tfds.ReadConfig(try_autocache=False, shuffle_seed=seed, interleave_cycle_length=4)
    options: dict[str, Any] = {"split": "train", "shuffle_files": True, "decoders": {"steps": {"observation": skip}}, "read_config": config}
    episodes: Any = builder.as_dataset(**options)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(prompts[0], tf.range(len(prompts[0]))), -1)
    ids = tf.constant(prompts[1])
    low, high = (tf.constant(bound, tf.float32) for bound in bounds)

    def samples(episode: Any) -> tf.data.Dataset:
        steps = episode["steps"].batch(1 << 20).get_single_element()
        action = tf.clip_by_value(2.0 * (steps["action"] - low) / (high - low + 1e-8) - 1.0, -1.0, 1.0)
        length = tf.shape(action)[0]
        index = tf.minimum(tf.range(length)[:, None] + tf.range(CHUNK)[None], length - 1)
        columns: Any = {
            "image": steps["observation"]["image"],
            "wrist_image": steps["observation"]["wrist_image"],
            "proprio": steps["observation"]["state"],
            "actions": tf.gather(action, index),
            "input_ids": tf.gather(ids, table.lookup(steps["language_instruction"])),
        }
        return tf.data.Dataset.from_tensor_slices(columns)

    dataset = episodes.repeat().interleave(samples, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.shuffle(SHUFFLE_BUFFER, seed=seed).skip(start * size)
    dataset = dataset.map(_pictures, num_parallel_calls=tf.data.AUTOTUNE).batch(size, drop_remainder=True)
    return iter(dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


def _pictures(sample: dict[str, Any]) -> dict[str, Any]:
    views = [_augment(_resized(sample.pop(key))) for key in ("image", "wrist_image")]
    return sample | {"images": tf.stack(views)}


def _resized(encoded: Any) -> Any:
    image = tf.io.decode_jpeg(encoded, channels=3)
    image = tf.image.resize(image, (TARGET, TARGET), method="lanczos3", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def _augment(image: Any) -> Any:
    """The same operations as `eosjax.data.images.transforms.augment`."""
    side = CROP_AREA**0.5
    corner = tf.random.uniform((2,), 0.0, 1.0 - side)
    box = tf.concat([corner, corner + side], 0)[None]
    image = tf.image.convert_image_dtype(image, tf.float32)
    image = tf.image.crop_and_resize(image[None], box, [0], (TARGET, TARGET))[0]
    image = tf.clip_by_value(tf.image.random_brightness(image, 0.2), 0.0, 1.0)
    image = tf.clip_by_value(tf.image.random_contrast(image, 0.8, 1.2), 0.0, 1.0)
    image = tf.clip_by_value(tf.image.random_saturation(image, 0.8, 1.2), 0.0, 1.0)
    image = tf.clip_by_value(tf.image.random_hue(image, 0.05), 0.0, 1.0)
    return tf.image.convert_image_dtype(image, tf.uint8)
