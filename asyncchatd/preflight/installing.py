"""`asyncchatd init`: the files a new host needs, and what to do with them.

The configuration is the commented one of the project with what was chosen filled in; the units are the
project's with the paths of this host, or drop-ins to those that the Debian package has installed. Nothing
that is there is overwritten unbidden; the push secret and the store key never: GMS knows the one, and the
database opens with nothing but the other. They are shown to nobody; what is printed says where they lie.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from asyncchatd.config import ConfigError, Listen, load
from asyncchatd.preflight.pointing import in_gms
from asyncchatd.stores import KEY_BYTES

CONFIG, SECRETS, KEYS, UNITS = "asyncchatd.toml", "push-secrets", "store-keys", "systemd"
GATEWAY_KEYS = "gateway-keys"
SERVICE, SOCKET, CONTROL_SOCKET = "asyncchatd.service", "asyncchatd.socket", "asyncchatd-control.socket"
GATEWAY_SOCKET = "asyncchatd-gateway.socket"
CONTROL_PATH = "/run/asyncchatd-control.sock"
METRICS = "127.0.0.1:8095"
"""With systemd, where the control API is a Unix socket, which Prometheus does not scrape."""
INSTALLED_UNITS = Path("/lib/systemd/system")
"""Where the Debian package puts the units, for the program and the configuration where it puts these."""
DROP_IN = "asyncchatd-init.conf"
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What the unit's `ProtectHome=yes` and `PrivateTmp=yes` hide from the service."""


NODE_GROUP = "gms-cluster"
"""Until the operator has said how the GMS cluster is called."""


class InitError(Exception):
    """The files cannot be written; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator said."""

    directory: Path
    """Absolute."""
    program: str
    """The command line that starts this program, as a unit writes it."""
    systemd: bool = True
    """For a service of systemd; otherwise to be started by hand, with everything beside the file."""
    packaged: bool = False
    """The units are installed; what differs in them is written as drop-ins. See `packaged`."""
    nodes: tuple[str, ...] = ()
    service: str | None = None
    listen: str = "127.0.0.1:8091"
    chat_servers: tuple[tuple[str, str], ...] = ()
    """Name and address of the health page of each."""
    metrics: str | None = None
    """Where Prometheus comes to; `None` for the control API alone."""
    gateway: str | None = None
    """Where chat clients come to; `None` for no gateway."""
    origins: tuple[str, ...] = ()
    """Whose pages the gateway serves."""
    node_group: str | None = None
    """Name of the GMS cluster, which the gateway has to know."""

    @property
    def config(self) -> Path:
        return self.directory / CONFIG

    @property
    def secrets(self) -> Path:
        return self.directory / SECRETS

    @property
    def keys(self) -> Path:
        return self.directory / KEYS

    @property
    def gateway_keys(self) -> Path:
        return self.directory / GATEWAY_KEYS


def this_program() -> str:
    """How this very program is started: by its command, or by its interpreter."""
    command = Path(sys.argv[0]).absolute()
    if command.name == "asyncchatd" and os.access(command, os.X_OK):
        return _quoted(command)
    return f"{_quoted(Path(sys.executable).absolute())} -m asyncchatd"


def packaged(directory: Path, program: str) -> bool:
    """Whether units are installed that run this program with the configuration in that directory."""
    try:
        unit = (INSTALLED_UNITS / SERVICE).read_text(encoding="utf-8")
    except OSError:
        return False
    return f"{_exec_start(program, directory / CONFIG)}\n" in unit


def install(choices: Choices, *, force: bool = False) -> list[Path]:
    """Write the files; those that were written. Raises `InitError` before anything is written when the
    choices are no use, or when a file is there already and `force` is not given."""
    try:
        f"{choices.directory}{configuration(choices)}".encode()
    except UnicodeEncodeError:
        raise InitError("expected names, addresses and the directory in UTF-8") from None
    _check(choices)
    files = {choices.config: configuration(choices), **_units(choices)}
    there = [str(path) for path in files if os.path.lexists(path) and not _untouched(choices, path)]
    if there and not force:
        anew = ", also what you set in the configuration" * (str(choices.config) in there)
        instead = "; docs/gateway.md says how to add a gateway by hand" * (choices.gateway is not None)
        raise InitError(
            f"{', '.join(there)}: already there; --force overwrites{anew}, --dir names another directory{instead}"
        )
    write_all(files)
    made = {path: text for path, text in _made(choices).items() if not os.path.lexists(path)}
    write_all(made, mode=0o600)
    return [*files, *made]


def write_all(files: Mapping[Path, str], *, mode: int = 0o644) -> None:
    """Write these files, and the directories they lie in. Raises `InitError`."""
    try:
        for path, text in files.items():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _write(path, text, mode)
    except OSError as error:
        raise InitError(
            f"{error.filename} cannot be written: {error.strerror}; be root, or name another directory with --dir"
        ) from None


def _untouched(choices: Choices, path: Path) -> bool:
    """Whether a file is the configuration as the package has it, in which nobody has set anything."""
    if not choices.packaged or path != choices.config:
        return False
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return text == configuration(Choices(choices.directory, choices.program, metrics=METRICS))


def _made(choices: Choices) -> dict[Path, str]:
    """What only this host has, anew at each call."""
    made = {choices.secrets: f"{secrets.token_urlsafe(24)}\n", choices.keys: f"{_key()}\n"}
    return made if choices.gateway is None else {**made, choices.gateway_keys: f"{_key()}\n"}


def _key() -> str:
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def configuration(choices: Choices) -> str:
    """The commented configuration with the choices in it."""
    text = shipped(CONFIG)
    text = _put(text, "receiver", "listen", choices.listen)
    text = text.replace('\nsecrets = ["change-me"]\n', '\n# secrets = ["change-me"]\n')
    if choices.systemd:
        text = _put(text, "receiver", "secrets_file", f"credential:{SECRETS}")
        text = _put(text, "control", "listen", f"unix:{CONTROL_PATH}")
        text = _put(text, "store", "url", "sqlite:///${STATE_DIRECTORY}/asyncchatd.db")
        text = _put(text, "store", "keys_file", f"credential:{KEYS}")
    else:
        text = text.replace("\n# systemctl reload asyncchatd, or SIGHUP, takes", "\n# SIGHUP takes")
        text = _put(text, "receiver", "secrets_file", SECRETS)
        text = _put(text, "store", "keys_file", KEYS)
    if choices.metrics is not None:
        text = text.replace("\n# [metrics]\n", "\n[metrics]\n")
        text = _put(text, "metrics", "listen", choices.metrics)
    if choices.gateway is not None:
        text = _with_gateway(text, choices, choices.gateway)
    if choices.nodes:
        text = _put(text, "gms", "nodes", list(choices.nodes))
    if choices.service:
        text = _put(text, "gms", "service", choices.service)
    return _with_chat_servers(text, choices.chat_servers)


def _with_gateway(text: str, choices: Choices, listen: str) -> str:
    """The section that is only there where there is a gateway."""
    text = text.replace("\n# [gateway]\n", "\n[gateway]\n")
    text = _put(text, "gateway", "listen", listen)
    text = _put(text, "gateway", "key_file", f"{'credential:' * choices.systemd}{GATEWAY_KEYS}")
    text = _put(text, "gateway", "node_group", choices.node_group or NODE_GROUP)
    return _put(text, "gateway", "origins", list(choices.origins)) if choices.origins else text


def _put(text: str, section: str, key: str, value: object) -> str:
    """Set a key where it stands, or where it stands commented out."""
    before, header, rest = text.partition(f"\n[{section}]\n")
    body, bracket, after = rest.partition("\n[")
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for found in (rf"^{key} = .*$", rf"^# {key} = .*$"):
        body, count = re.subn(found, lambda _: line, body, count=1, flags=re.MULTILINE)
        if count:
            return before + header + body + bracket + after
    raise LookupError(f"{section}.{key} is not in the shipped configuration")


def _with_chat_servers(text: str, servers: Sequence[tuple[str, str]]) -> str:
    """The first takes the place of the example. Without any the example becomes a comment."""
    before, header, example = text.partition("\n[[chat_server]]\n")
    if not servers:
        commented = re.sub(r"^(?=name = |health_url = )", "# ", example, flags=re.MULTILINE)
        return f"{before}\n# [[chat_server]]\n{commented}"
    tables = [
        f"name = {json.dumps(name, ensure_ascii=False)}\nhealth_url = {json.dumps(url, ensure_ascii=False)}\n"
        for name, url in servers
    ]
    described = re.sub(r"^name = .*\nhealth_url = .*\n", lambda _: tables[0], example, flags=re.MULTILINE)
    return before + header + described + "".join(header + table for table in tables[1:])


def _check(choices: Choices) -> None:
    """Whether the daemon would take the file. It is read from a place of its own, with everything beside
    it, because credentials and the state directory are there in the service alone."""
    with tempfile.TemporaryDirectory(prefix="asyncchatd-init-") as directory:
        trial = replace(choices, directory=Path(directory), systemd=False)
        trial.config.write_text(configuration(trial), encoding="utf-8")
        for path, text in _made(trial).items():
            path.write_text(text)
        try:
            load(trial.config)
        except ConfigError as error:
            problems = (f"{problem.key}: {problem.message}" for problem in error.problems)
            raise InitError("; ".join(problems)) from None
    if choices.systemd:
        _listen_stream("--listen", choices.listen)
        if choices.gateway is not None:
            _listen_stream("--gateway", choices.gateway)


def _units(choices: Choices) -> dict[Path, str]:
    if not choices.systemd:
        return {}
    if choices.packaged:
        return _drop_ins(choices)
    service = shipped(SERVICE)
    start = _exec_start(choices.program, choices.config)
    service = re.sub(r"^ExecStart=.*$", lambda _: start, service, flags=re.MULTILINE)
    if choices.gateway is not None:
        service = re.sub(r"^#(?=\w+=.*gateway)", "", service, flags=re.MULTILINE)
    paths = (choices.secrets, choices.keys, choices.gateway_keys)
    credentials = {path.name: _escaped(path) for path in paths}
    service = re.sub(
        r"^(LoadCredential=(.*?):).*$",
        lambda line: line[1] + credentials[line[2]],
        service,
        flags=re.MULTILINE,
    )
    texts = {
        SERVICE: service,
        SOCKET: _socket(SOCKET, _listen_stream("--listen", choices.listen)),
        CONTROL_SOCKET: shipped(CONTROL_SOCKET),
    }
    if choices.gateway is not None:
        texts[GATEWAY_SOCKET] = _socket(GATEWAY_SOCKET, _listen_stream("--gateway", choices.gateway))
    return {choices.directory / UNITS / name: text for name, text in texts.items()}


def _drop_ins(choices: Choices) -> dict[Path, str]:
    """What differs from the installed units, so that an upgrade can renew these."""
    head = "# Written by `asyncchatd init`.\n"
    listen = "[Socket]\n# In place of the one of the unit.\nListenStream=\nListenStream={}\n"
    texts = {SOCKET: listen.format(_listen_stream("--listen", choices.listen))}
    if choices.gateway is not None:
        texts[SERVICE] = (
            f"[Service]\nSockets={GATEWAY_SOCKET}\n"
            f"LoadCredential={GATEWAY_KEYS}:{_escaped(choices.gateway_keys)}\n"
        )
        texts[GATEWAY_SOCKET] = listen.format(_listen_stream("--gateway", choices.gateway))
    return {choices.directory / UNITS / f"{unit}.d" / DROP_IN: head + text for unit, text in texts.items()}


def _exec_start(program: str, config: Path) -> str:
    return f"ExecStart={program} run --config {_quoted(config)}"


def _socket(name: str, stream: str) -> str:
    """A shipped socket unit, for another address."""
    there = re.compile(r"^ListenStream=.*$", re.MULTILINE)
    return there.sub(lambda _: f"ListenStream={stream}", shipped(name))


def _listen_stream(option: str, listen: str) -> str:
    """The address that an option of the command gave, as a socket unit writes it."""
    address = Listen.parse(listen)
    if address.path is not None:
        return _escaped(Path(address.path))
    try:
        return str(address) if address.host and ipaddress.ip_address(address.host) else str(address.port)
    except ValueError:
        raise InitError(
            f"{option}: systemd takes no names, so name an address of this host instead of {address.host}"
        ) from None


def _quoted(path: Path) -> str:
    """As a word of a command in a unit, where `$` begins a variable."""
    text = _escaped(path).replace("$", "$$")
    return json.dumps(text, ensure_ascii=False) if re.search(r"[\s\"'\\;]", text) else text


def _escaped(path: Path) -> str:
    """`%` begins a specifier in a unit."""
    return str(path).replace("%", "%%")


def shipped(name: str) -> str:
    """A file that came with the program."""
    return (resources.files("asyncchatd") / "shipped" / name).read_text(encoding="utf-8")


def _write(path: Path, text: str, mode: int) -> None:
    """Wholly or not at all, and never for a moment readable by more than `mode` says."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(
        os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8"
    ) as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(text)
    os.replace(beside, path)


# What to do next.


def next_steps(choices: Choices, written: Sequence[Path]) -> str:
    """What was done and what is left to do on this host and in GMS, in the order in which to do it."""
    steps = [
        step
        for step in (
            _settings_left(choices),
            _checking(choices),
            _starting(choices),
            _gms(choices),
            _clients(choices),
        )
        if step
    ]
    numbered = [f"{number}. {step}" for number, step in enumerate(steps, start=1)]
    return "\n\n".join(("\n".join(_done(choices, written)), *numbered, *_doubts(choices)))


def _done(choices: Choices, written: Sequence[Path]) -> Iterator[str]:
    yield "Written:"
    for path in written:
        yield f"  {path}"
    if choices.secrets not in written:
        yield f"Kept as it is, because GMS knows it: {choices.secrets}"
    if choices.keys not in written:
        yield f"Kept as it is, because a database may be encrypted with it: {choices.keys}"
    yield f"Keep a copy of {choices.keys}: without it a backup of the database is of no use."
    if choices.gateway is not None:
        if choices.gateway_keys not in written:
            yield f"Kept as it is, because chat clients hold keys made with it: {choices.gateway_keys}"
        yield f"Keep a copy of {choices.gateway_keys}: without it the clients of chats that live are refused."


def _settings_left(choices: Choices) -> str:
    left: dict[str, object] = {
        "gms.nodes, the base addresses of your GMS nodes": choices.nodes,
        "gms.service, the name of your chat service in GMS": choices.service,
        "a [[chat_server]] table for each Chat Server": choices.chat_servers,
    }
    if choices.gateway is not None:
        left["gateway.node_group, the name of the GMS cluster"] = choices.node_group
        left["gateway.origins, of the pages with a chat in them"] = choices.origins
    missing = [f"   {what}" for what, given in left.items() if not given]
    return "\n".join([f"Set in {choices.config} what only you know:", *missing]) if missing else ""


def _checking(choices: Choices) -> str:
    check = f"{choices.program} check --connect --config {choices.config}"
    if choices.systemd:
        check = f"CREDENTIALS_DIRECTORY={choices.directory} STATE_DIRECTORY=/var/lib/asyncchatd \\\n       {check}"
    return f"Check it, and the hosts it names:\n   {check}"


def _starting(choices: Choices) -> str:
    if not choices.systemd:
        return f"Start it:\n   {choices.program} run --config {choices.config}"
    sockets = (SOCKET, CONTROL_SOCKET, *([GATEWAY_SOCKET] if choices.gateway is not None else []))
    units = choices.directory / UNITS
    copied = (
        (f"cp -r {units}/. /etc/systemd/system/",)
        if choices.packaged
        else (
            "groupadd --system --force asyncchatd-control",
            f"install -m 0644 {units}/asyncchatd* /etc/systemd/system/",
        )
    )
    commands = (
        *copied,
        "systemctl daemon-reload",
        f"systemctl enable --now {' '.join(sockets)} {SERVICE}",
        "systemctl status asyncchatd",
    )
    return (
        "Start it, as root. Members of the group asyncchatd-control, and root, may use the control API:\n   "
        + "\n   ".join(commands)
    )


def _gms(choices: Choices) -> str:
    listen = Listen.parse(choices.listen)
    port = "" if listen.port is None else f":{listen.port}"
    where = (
        "in the chat application" if choices.gateway is None else "where a chat begins without the gateway"
    )
    lies = f"the line of {choices.secrets}"
    return f"Point GMS at it. {in_gms(f'http://HOST{port}/push/SECRET', lies, where)}"


def _clients(choices: Choices) -> str:
    if choices.gateway is None:
        return ""
    listen = Listen.parse(choices.gateway)
    port = "" if listen.port is None else f":{listen.port}"
    base = f"http://HOST{port}/genesys, or the address of the proxy with TLS in front"
    if listen.local:
        base = f"that of the proxy with TLS in front, as only this host reaches {choices.gateway}"
    return f"""Point the chat clients at it instead of at GMS, and let nothing else change for them:
   base address      {base}
                     gateway.path is the part behind the host that they have today
   GMS must not stand behind the same balancer as a backup: it does not know the keys these clients hold"""


def _doubts(choices: Choices) -> Iterator[str]:
    if not choices.systemd:
        return
    install_elsewhere = (
        "Install into /opt: python3 -m venv /opt/asyncchatd, or\n"
        "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install ."
    )
    for what, advice in (
        (choices.program.split()[0].strip('"'), install_elsewhere),
        (str(choices.directory), "Do it again with another --dir; the default is /etc/asyncchatd."),
    ):
        if os.path.realpath(what).startswith(tuple(f"{hidden}/" for hidden in HIDDEN)):
            yield (
                f"Note: the service cannot read {what}: it sees neither home nor temporary directories.\n"
                f"{advice}"
            )
    host = Listen.parse(choices.listen).host or ""
    if host == "::1" or host.startswith("127."):
        yield (
            f"Note: only this host reaches {choices.listen}. Where GMS runs on another one, and no proxy stands in\n"
            "front, do it again with --listen ADDRESS:8091 --force."
        )
