"""Runs with openpi-client alone, in an environment without eosjax: what a robot that speaks openpi's protocol does.

URL KEY → JSON on stdout."""

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

url, key = sys.argv[1:]
image = np.full((4, 6, 3), 7, np.uint8)


def observation(number, scores):
    return {
        "observation/image": image,
        "observation/wrist_image": image,
        "observation/state": np.array([number, *scores]),
        "prompt": "close it",
    }


policy = WebsocketClientPolicy(url, api_key=key)
chunk = policy.infer(observation(3.0, [0, 0, 0.9, 0]))
assert len(chunk["actions"]) >= 4, "as openpi's LIBERO client asserts"
broker = ActionChunkBroker(policy, action_horizon=4)
steps = [broker.infer(observation(float(step), [0.1, 0.2, 0.3, 0.4])) for step in range(6)]
try:
    policy.infer({"prompt": "close it"})
except RuntimeError as error:
    told = str(error)
print(
    json.dumps(
        {
            "metadata": policy.get_server_metadata(),
            "cut": chunk["cut"],
            "actions": [step["actions"].tolist() for step in steps],
            "eos": [float(step["eos"]) for step in steps],
            "cuts": [step["cut"] for step in steps],
            "error": told,
        }
    )
)
