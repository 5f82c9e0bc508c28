import pytest
import trustme

from eosjax.cli import main, serve
from tests.serving.served import StubPolicy


@pytest.fixture
def served(monkeypatch):
    """The servers that the command runs; each says that it listens on port 7 and stops."""
    found = []

    def run(server, started):
        found.append(server)
        started(7)

    monkeypatch.setattr(serve.Policy, "load", lambda *args: args)
    monkeypatch.setattr(serve, "HostedPolicy", lambda policy: StubPolicy())
    monkeypatch.setattr(serve, "serve_until_stopped", run)
    monkeypatch.setattr(serve, "_show_log", lambda: None)  # it would outlive the test
    return found


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_text("0123456789abcdef\n")
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_key(served, capsys, host):
    assert main(["serve", "--checkpoint", "run", "--host", host]) == 0
    shown = "[::1]" if host == "::1" else host
    assert f"serving run at ws://{shown}:7\nstopped\n" in capsys.readouterr().out
    assert len(served) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "robot.example.org"])
def test_other_machines_need_a_key(served, capsys, host, key):
    assert main(["serve", "--checkpoint", "run", "--host", host]) == 2
    assert f"--host {host}: expected --api_key_file" in capsys.readouterr().err
    assert not served
    assert main(["serve", "--checkpoint", "run", "--host", host, "--api_key_file", str(key)]) == 0


def test_a_certificate(served, tmp_path, capsys):
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    flags = ["serve", "--checkpoint", "run", "--tls_cert", str(tmp_path / "cert.pem")]
    assert main([*flags, "--tls_key", str(tmp_path / "key.pem")]) == 0
    assert "wss://127.0.0.1:7" in capsys.readouterr().out
    assert main(flags) == 2
    assert "--tls_cert, --tls_key: expected both or none" in capsys.readouterr().err
    for content in (b"", issued.cert_chain_pems[0].bytes()):
        (tmp_path / "key.pem").write_bytes(content)
        assert main([*flags, "--tls_key", str(tmp_path / "key.pem")]) == 2
        assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "--port: expected 0 to 65535"),
        (["--max_batch", "0"], "--max_batch: expected more than 0, got 0"),
        (["--max_rate", "nan"], "--max_rate: expected more than 0, got nan"),
        (["--execute_steps", "5"], "execute_steps: expected 1 to 4"),
        (["--keys", "nobody"], "nobody: expected libero, droid, aloha or a YAML file"),
        (["--api_key_file", "nowhere"], "nowhere: unreadable file"),
    ],
)
def test_flags_that_make_no_sense(served, capsys, flags, message):
    assert main(["serve", "--checkpoint", "run", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not served


@pytest.mark.parametrize("text", ["", "tiny01", "0123456789 abcdef", "0123456789abcdeä", "0123456789abcdef\nnext"])
def test_a_key_that_is_none(served, capsys, key, text):
    key.write_text(text, encoding="utf-8")
    assert main(["serve", "--checkpoint", "run", "--api_key_file", str(key)]) == 2
    told = capsys.readouterr().err.replace(str(key), "FILE")
    assert "expected one word of at least 16 ASCII characters" in told
    assert not text or text not in told
