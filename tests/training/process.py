"""train.py with a network of one layer, which compiles in a second: a process of a run of several, to which something may happen.

    python process.py FAULT FLAGS OF train.py

FAULT: "none"; "kill 5" or "interrupt 5", a signal after so many updates; "full disk", when it saves; "not finite", the loss that it logs.
At its end it says which sets of devices have met for the first time while it trained.
"""

import contextlib
import errno
import os
import signal
import sys

import flax.linen as nn
import jax.numpy as jnp
from jax._src import distributed

import train
from eosjax.models import policies
from eosjax.models.openvla import OpenVLA
from eosjax.training import loop

SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}


class OneLayer(OpenVLA):
    """Hidden states from the mean colour of the images."""

    def setup(self):
        self.layer = nn.Dense(self.config.chunk * self.config.action_dim * self.config.llama.width)

    def __call__(self, images, input_ids, attn_mask, proprio, noisy=None, *, deterministic=True):
        colours = jnp.mean(images / 255.0, axis=(1, 2, 3))
        return jnp.tanh(self.layer(colours)).reshape(len(images), self.config.chunk, self.config.action_dim, -1)


def sets_that_met():
    """The sets of devices that have met in a reduction, as Gloo names them."""
    client = distributed.global_state.client
    return {name.rpartition("/")[0] for name, _ in client.key_value_dir_get_bytes("cpu:gloo")} if client else set()


def befall(trainer, fault):
    """Lets something happen to this process while it trains."""
    name, _, number = fault.partition(" ")
    if name in SIGNALS:
        stop_signals = loop.stop_signals

        @contextlib.contextmanager
        def patched():
            with stop_signals() as stopped:

                def stop(step):
                    if step == int(number):
                        trainer.checkpoints.wait()  # else it is left to chance which one is on disk
                        os.kill(os.getpid(), SIGNALS[name])
                    return stopped(step)

                yield stop

        loop.stop_signals = patched
    elif fault == "full disk":

        def save(*args):
            raise OSError(errno.ENOSPC, "no space")

        trainer.checkpoints.save = save
    elif fault == "not finite":
        to_row = loop.metrics.to_row
        loop.metrics.to_row = lambda *args, **kwargs: to_row(*args, **kwargs) | {"train/total_loss": float("nan")}


def main(fault, *flags):
    policies.OpenVLA = OneLayer
    usual = loop.Trainer.train

    def observed(trainer, report):
        before = sets_that_met()
        befall(trainer, fault)
        usual(trainer, report)
        print("met while it trained:", sorted(sets_that_met() - before))

    loop.Trainer.train = observed
    train.main(list(flags))


if __name__ == "__main__":
    main(*sys.argv[1:])
