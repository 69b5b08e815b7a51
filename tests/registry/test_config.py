"""What `aicortex.toml` says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aicortex.registry.config import Config, parse, read_config
from aicortex.registry.entries import ServerEntry

EXAMPLE = """
model = "llama3.2:3b"
routing = "balanced"
location = "eu/office"
resume = "never"
[aliases]
chat = "llama3.2:3b"
small = ["llama3.2:1b-q8_0", "smollm2:135m"]
[[servers]]
url = "desk"
name = "desk"
location = "eu/office"
organization = "lab"
labels = { gpu = "4090" }
weight = 2
priority = 1
slots = 4
api_key = "env:DESK_KEY"
headers = { X-Team = "keyring:aicortex/team" }
verify = false
ca_file = "certs/lab.pem"
client_cert = "/mine.pem"
expand = true
draining = true
[[servers]]
url = "https://rack/ollama"
"""
SERVERS = (
    ServerEntry(
        "http://desk:11434",
        *("desk", "eu/office", "lab", {"gpu": "4090"}, 2.0, 1, 4, "env:DESK_KEY"),
        *({"X-Team": "keyring:aicortex/team"}, False, "/team/certs/lab.pem", "/mine.pem", True, True, "the file"),
    ),
    ServerEntry("https://rack:443/ollama", source="the file"),
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, in which its user works; `config/aicortex` beside it is the user's own."""
    monkeypatch.delenv("AICORTEX_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for folder in ("config/aicortex", "project"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def write(folder: Path, text: str) -> str:
    path = folder / "aicortex.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_every_field_is_read() -> None:
    """The example of the documentation means what it says; paths are beside the file."""
    aliases = {"chat": ("llama3.2:3b",), "small": ("llama3.2:1b-q8_0", "smollm2:135m")}
    expected = Config(SERVERS, aliases, "llama3.2:3b", "balanced", "eu/office", "never")
    assert parse(EXAMPLE, "the file", folder="/team") == expected


def test_an_empty_file_says_nothing() -> None:
    """Everything may be left out."""
    assert parse("", "x", folder="/") == Config()


def test_nothing_configured(project: Path) -> None:
    """Without files the configuration is empty."""
    assert project.exists()
    assert read_config() == Config()


def test_the_more_specific_file_counts(project: Path) -> None:
    """Each setting, alias and server is the project's if it names one, else the user's."""
    users = write(
        project.parent / "config/aicortex",
        'model = "a"\nlocation = "home"\naliases = {x = "u", y = "u"}\n'
        '[[servers]]\nurl = "desk"\nweight = 9\n[[servers]]\nurl = "nas"\nname = "store"\n'
        '[[servers]]\nurl = "other"\nname = "rack"\n',
    )
    own = write(
        project,
        'model = "b"\naliases = {x = "p"}\n'
        '[[servers]]\nurl = "http://desk:11434"\n[[servers]]\nurl = "r"\nname = "rack"\n',
    )
    assert read_config() == Config(
        (
            ServerEntry("http://desk:11434", source=own),
            ServerEntry("http://r:11434", "rack", source=own),
            ServerEntry("http://nas:11434", "store", source=users),
            ServerEntry("http://other:11434", source=users),  # its name is taken
        ),
        {"x": ("p",), "y": ("u",)},
        model="b",
        location="home",
    )


def test_it_is_read_again_when_it_has_changed(project: Path) -> None:
    """A file is remembered by its time and size; one that appears, changes or goes is noticed."""
    path = write(project, 'model = "a"')
    first = read_config()
    assert read_config() is first
    write(project, 'model = "longer"')
    assert read_config().model == "longer"
    write(project, 'model = "larger"')
    os.utime(path, ns=(1, 1))
    assert read_config().model == "larger"
    users = write(project.parent / "config/aicortex", 'resume = "never"')
    assert (read_config().model, read_config().resume) == ("larger", "never")
    os.remove(path)
    assert (read_config().model, read_config().resume) == ("", "never")
    os.remove(users)
    assert read_config() == Config()


def test_a_mistake_is_told_every_time_and_can_be_mended(project: Path) -> None:
    """A wrong file is never remembered as an empty one."""
    path = write(project, "model = 1")
    for _ in range(2):
        with pytest.raises(ValueError, match="model must be text") as caught:
            read_config()
        assert str(caught.value).startswith(path)
    write(project, 'model = "a"')
    assert read_config().model == "a"


def test_a_file_that_is_named_must_be_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AICORTEX_CONFIG with a slip in it is not taken for an empty configuration."""
    monkeypatch.setenv("AICORTEX_CONFIG", str(project / "nothing.toml"))
    with pytest.raises(ValueError, match=r"nothing\.toml cannot be read: No such file.* \(AICORTEX_CONFIG names it\)"):
        read_config()
    monkeypatch.setenv("AICORTEX_CONFIG", str(project))
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_config()


@pytest.mark.parametrize("reference", ["env:AWS_SECRET_ACCESS_KEY", "keyring:mail/me", "env:AICORTEX_API_KEY"])
def test_a_projects_file_cannot_send_away_just_any_secret(
    reference: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what begins with AICORTEX_KEY_, or the keyring's own service; a file that its user named may say all."""
    path = project / "aicortex.toml"
    for spelling in (f'api_key = "{reference}"', f'headers = {{ X-Key = "{reference}" }}'):
        path.write_text(f'[[servers]]\nurl = "http://desk:11434"\n{spelling}\n', "utf-8")
        with pytest.raises(ValueError, match="may only name secrets that begin with env:AICORTEX_KEY_"):
            read_config()
    monkeypatch.setenv("AICORTEX_CONFIG", str(path))
    assert read_config().servers[0].headers == {"X-Key": reference}
    monkeypatch.delenv("AICORTEX_CONFIG")
    path.write_text('[[servers]]\nurl = "http://desk:11434"\napi_key = "env:AICORTEX_KEY_DESK"\n', "utf-8")
    assert read_config().servers[0].api_key == "env:AICORTEX_KEY_DESK"


def test_files_of_any_editor(project: Path) -> None:
    """A byte order mark and Windows line ends are read; another encoding is told."""
    (project / "aicortex.toml").write_bytes(b'\xef\xbb\xbfmodel = "a"\r\nlocation = "b"\r\n')
    assert read_config() == Config(model="a", location="b")
    (project / "aicortex.toml").write_bytes('location = "Düsseldorf"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"aicortex\.toml is no TOML: it is not encoded as UTF-8"):
        read_config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = ", "here is no TOML: Invalid value"),
        ('modell = "x"', "here: unknown key 'modell'; did you mean 'model'?"),
        ("zzz = 1", "here: unknown key 'zzz'; it may have model, routing, location, resume, aliases, servers"),
        ("model = 3", "here: model must be text"),
        ('location = " "', "here: location must be text that is not empty"),
        ('routing = "best"', "here: routing must be one of balanced, "),
        ('resume = "maybe"', "here: resume must be 'continue' or 'never'"),
        ('aliases = "x"', "here: aliases is a table"),
        ("aliases = {a = []}", "here: aliases.a must be a model's name"),
        ("aliases = {a = [1]}", "here: aliases.a must be a model's name"),
        ('aliases = {a = ""}', "here: aliases.a must be a model's name"),
        ("servers = 3", "here: servers is a list of tables"),
        ("servers = [3]", "here: servers is a list of tables"),
        ('[[servers]]\nname = "a"', "here: servers[0]: Object missing required field `url`"),
        ('[[servers]]\nurl = ""', "here: servers[0]: url is empty"),
        ('[[servers]]\nurl = "ftp://a"', "here: servers[0]: 'ftp://a' is no server address"),
        ('[[servers]]\nurl = "a"\nwieght = 3', "here: servers[0]: unknown key 'wieght'; did you mean 'weight'?"),
        ('[[servers]]\nurl = "a"\nsource = "b"', "here: servers[0]: unknown key 'source'"),
        ('[[servers]]\nurl = "a"\nweight = "3"', "here: servers[0]: weight: Expected `float`, got `str`"),
        ('[[servers]]\nurl = "a"\nslots = 0', "here: servers[0]: slots must be from 1 to"),
        ('[[servers]]\nurl = "a"\n[[servers]]\nurl = "a:11434"', "here: servers[1]: url is that of another server"),
        (
            '[[servers]]\nurl = "a"\nname = "n"\n[[servers]]\nurl = "b"\nname = "n"',
            "here: servers[1]: name is that of another server above",
        ),
    ],
)
def test_mistakes_name_file_and_key(text: str, words: str) -> None:
    """Every mistake says where it is and what to write."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are compared below
        parse(text, "here", folder="/")
    assert str(caught.value).startswith(words)
