import ssl

import pytest
import trustme
from websockets.exceptions import InvalidHandshake, InvalidStatus

from tests.serving.served import ask, observation, running

KEY = "k" * 16


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def server(authority):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with running(tls=context, api_key=KEY.encode()) as found:
        found.url = found.url.replace("ws:", "wss:")
        yield found


def trust(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_encrypted_and_with_a_key(server, authority):
    with server.connect(ssl=trust(authority), additional_headers={"Authorization": f"Api-Key {KEY}"}) as connection:
        assert ask(connection, observation())["cut"] == -1


def test_who_does_not_know_the_authority_does_not_connect(server):
    with pytest.raises(ssl.SSLCertVerificationError), server.connect():
        pass


def test_the_key_is_needed_with_encryption_too(server, authority):
    with pytest.raises(InvalidStatus, match="401"), server.connect(ssl=trust(authority)):
        pass


def test_who_speaks_in_the_clear_is_turned_away_and_nobody_else(server, authority):
    server.url = server.url.replace("wss:", "ws:")
    with pytest.raises((InvalidHandshake, OSError, EOFError)), server.connect():
        pass
    server.url = server.url.replace("ws:", "wss:")
    test_encrypted_and_with_a_key(server, authority)
