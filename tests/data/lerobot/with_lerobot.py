"""Runs in an environment that has the package `lerobot`: writes datasets with its writer, and reads them with its reader.

python with_lerobot.py write FOLDER images|video LENGTHS CODEC
python with_lerobot.py read FOLDER OUT.npz
"""

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FPS, SIZE = 10, (64, 96)
NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def picture(episode, step, camera):
    """A picture that tells the episode and the step: a smooth ground, and a square that moves."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = np.stack([rows * 2, columns * 2, np.full(SIZE, 40 * episode)], axis=-1).astype(np.uint8)
    pixels[8 + 16 * camera :][:16, 4 * step % 80 :][:, :16] = (255, 80 + 20 * camera, 10 * step % 256)
    return pixels


def write(folder, kind, lengths, codec):
    feature = {"dtype": kind.removesuffix("s"), "shape": (*SIZE, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (6,), "names": list(NAMES)}
    cameras = ("observation.images.up", "observation.images.wrist")
    dataset = LeRobotDataset.create(
        "made/by_lerobot",
        FPS,
        {**dict.fromkeys(cameras, feature), "observation.state": vector, "action": vector},
        root=folder,
        robot_type="so101_follower",
        use_videos=kind == "video",
        vcodec=codec,
    )
    random = np.random.default_rng(0)
    for episode, length in enumerate(lengths):
        for step in range(length):
            frame = {camera: picture(episode, step, number) for number, camera in enumerate(cameras)}
            frame |= {"observation.state": random.uniform(-90, 90, 6).astype(np.float32)}
            frame |= {"action": np.append(random.uniform(-90, 90, 5), random.uniform(0, 100)).astype(np.float32)}
            dataset.add_frame(frame | {"task": f"Put block {episode % 2} away"})
        dataset.save_episode()
    dataset.finalize()


def read(folder, out):
    dataset = LeRobotDataset("made/by_lerobot", root=folder, video_backend="pyav")
    items = [dataset[index] for index in range(len(dataset))]
    columns = {
        key: np.stack([item[key].numpy() for item in items])
        for key in ("observation.state", "action", "timestamp", "episode_index", *dataset.meta.camera_keys)
    }
    np.savez(out, tasks=[item["task"] for item in items], **columns)


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    if command == "write":
        write(Path(folder), rest[0], [int(length) for length in rest[1].split(",")], rest[2])
    else:
        read(Path(folder), rest[0])
