import numpy as np
import pytest

from eosjax.ends.closed_loop import Episode, Film, Switch, Trace
from eosjax.envs.episodes import EpisodeFolder
from eosjax.types import UserError

WHO = ("eos", "policy")
TRACE = Trace(7, 20, True, 18, (True, False), (Switch(0, 5, 4, False), Switch(1, 9, -1, True)))
FILM = Film(["a", "b"], np.array([0.5, np.nan], np.float32), np.array([True, False]), [0, 1], [[b"x", b"y"], [b"z", b""]])


@pytest.mark.parametrize("episode", [Episode(TRACE, FILM), Episode(TRACE, None, "dead")])
def test_an_episode_is_read_as_it_was_written(tmp_path, episode):
    EpisodeFolder(tmp_path / "out", {"seed": 1}).write(WHO, episode)
    found = EpisodeFolder(tmp_path / "out", {"seed": 1}).read(WHO, 7)
    assert found.trace == episode.trace
    assert found.fault == episode.fault
    if episode.film:
        np.testing.assert_array_equal(found.film.eos, FILM.eos)
        np.testing.assert_array_equal(found.film.holds, FILM.holds)
        assert found.film._replace(eos=0, holds=0) == FILM._replace(eos=0, holds=0)


def test_what_is_not_finished_is_none(tmp_path):
    folder = EpisodeFolder(tmp_path, {})
    folder.write(WHO, Episode(TRACE, None))
    assert folder.read(WHO, 6) is None
    assert folder.read(("eos", "expert"), 7) is None


def test_episodes_with_other_settings_are_refused(tmp_path):
    EpisodeFolder(tmp_path, {"seed": 1, "env": "demo"})
    with pytest.raises(UserError, match="seed 1, now 2"):
        EpisodeFolder(tmp_path, {"seed": 2, "env": "demo"})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        EpisodeFolder(tmp_path / "file", {})
