import io

import av
import numpy as np
import pytest
from PIL import Image

from eosjax.data.rlds.write import jpeg
from eosjax.ends.closed_loop import Episode, Film, Trace
from eosjax.reports import films as module
from eosjax.reports.films import film_file

GREY = (40, 120, 200)


@pytest.fixture
def episode():
    """Three pictures of two cameras, 15 x 20 and 15 x 13 pixels, each brighter than the last."""
    pictures = [[jpeg(np.full((15, width, 3), grey, np.uint8)) for width in (20, 13)] for grey in GREY]
    return Episode(Trace(0, 3, True, 2, (True,), ()), Film([""] * 3, np.zeros(3), np.zeros(3, bool), [0, 1, 2], pictures))


def test_an_mp4_has_the_cameras_side_by_side_in_order(episode):
    suffix, content = film_file(episode)
    assert suffix == ".mp4"
    with av.open(io.BytesIO(content)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
    assert [frame.shape for frame in frames] == [(14, 32, 3)] * 3  # even sides
    np.testing.assert_allclose([frame.mean() for frame in frames], GREY, atol=3)


@pytest.mark.parametrize("lacks", ["PyAV", "H.264"])
def test_a_gif_where_there_is_no_encoder(episode, monkeypatch, lacks):
    if lacks == "PyAV":
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(av, "codecs_available", {"gif"})
    suffix, content = film_file(episode)
    assert suffix == ".gif"
    picture = Image.open(io.BytesIO(content))
    assert (picture.n_frames, picture.size) == (3, (33, 15))
