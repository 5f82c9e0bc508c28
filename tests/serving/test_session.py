import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.ends.protocols import Rule, replay
from eosjax.serving.chunk import Chunk
from eosjax.serving.inference import Answer
from eosjax.serving.session import NO_END, Options, Session

K = 4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.4, 0.9]), min_size=K, max_size=K), min_size=1, max_size=12),
    st.builds(Rule, st.just(0.4), st.integers(1, 3), st.integers(1, 4), st.none() | st.integers(5, 9)),
    st.integers(1, K),
)
def test_a_client_without_a_clock_gets_the_deployed_protocol(scores, rule, execute_steps):
    """A robot that executes up to `cut`, or `execute_steps` actions, and asks again: its ends are those of `replay`."""
    scores = np.array(scores)
    padded = np.pad(scores, ((0, K), (0, 0)))
    session, step, fired = Session(rule, execute_steps), 0, []
    while step < len(scores):
        reply, _ = session.reply("go on", Options(), Answer(Chunk(np.zeros((K, 1)), padded[step]), 0.0, 0.0, 1))
        if reply["cut"] == NO_END:
            step += execute_steps
        else:
            step += reply["cut"] + 1
            fired.append(step - 1)
    within = [each for each in fired if each < len(scores)]
    assert within == replay(scores[:, :execute_steps], rule).fired.tolist()
