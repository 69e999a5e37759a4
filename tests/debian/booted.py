"""What asyncchatd does on a booted Debian, with systemd as process 1: `.ci/deb-test` runs this inside it.

    booted.py package PACKAGE NEXT      the installed package, upgraded to NEXT, put back to PACKAGE, removed, purged
    booted.py venv WHEELHOUSE           an environment in /opt/asyncchatd, without internet, with a dynamic user

Only the standard library is at hand. The plant is the stand-in, and the addresses are this host's own.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ETC, STATE = Path("/etc/asyncchatd"), Path("/var/lib/asyncchatd")
EXAMPLES = Path("/usr/share/doc/asyncchatd/examples")
SOCKETS = ("asyncchatd.socket", "asyncchatd-control.socket")
PATIENCE = 60.0
GMS, CONTROL = "http://127.0.0.1:8080/genesys", 8099
INIT = (
    "init", "--gms", GMS, "--service", "customer-support",
    "--chat-server", "chat-1=http://127.0.0.1:4001/",
)  # fmt: skip


def run(*command: str, check: bool = True, env: dict[str, str] | None = None) -> str:
    """What a command printed, both streams."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}")
    return done.stdout


def told(what: str) -> None:
    print(f"ok  {what}", flush=True)


def until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.05)


def shown(unit: str, name: str) -> str:
    return run("systemctl", "show", unit, "--property", name, "--value").strip()


def active(*units: str) -> list[str]:
    return [run("systemctl", "is-active", unit, check=False).strip() for unit in units]


def journal() -> list[dict[str, object]]:
    """The log, as the journal has it."""
    lines = run("journalctl", "--unit", "asyncchatd", "--output", "cat", "--no-pager").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def logged(event: str) -> int:
    return sum(line["event"] == event for line in journal())


def post(port: int, path: str, body: object) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def looked_after() -> None:
    """Once the status that systemd shows counts the chats of the plant."""
    until("20 sessions in the status", lambda: shown("asyncchatd", "StatusText").startswith("20 sessions"))


def push() -> int:
    """A push of a chat, to the port that systemd holds: the status."""
    secret = (ETC / "push-secrets").read_text().strip()
    event = {"type": "Message", "from": {"type": "Agent"}, "text": "Good morning"}
    body = {"deviceId": "phone-1", "chatId": "0008TaFN00000001", "userId": "052B5F58", "message": event}
    return post(8091, f"/push/{secret}", body)[0]


@contextmanager
def pushes(what: str) -> Iterator[None]:
    """Pushes, one after another on a connection each, while something happens: every one is answered 200."""
    answers: list[int | str] = []
    over = threading.Event()

    def pushing() -> None:
        for _ in itertools.count():
            if over.is_set():
                return
            try:
                answers.append(push())
            except OSError as error:
                answers.append(repr(error))
            time.sleep(0.01)

    thread = threading.Thread(target=pushing)
    thread.start()
    try:
        until("the first push", lambda: answers)
        yield
        before = len(answers)
        until("a push after it", lambda: len(answers) > before + 3)
    finally:
        over.set()
        thread.join()
    refused = [answer for answer in answers if answer != 200]
    assert not refused, f"{what}: of {len(answers)} pushes these were not taken: {refused[:5]}"
    told(f"{what}: {len(answers)} pushes meanwhile, every one answered 200")


def as_told(text: str, step: str) -> list[str]:
    """The commands that `init` printed below a step."""
    block = text.partition(step)[2].partition("\n\n")[0].partition("\n")[2]
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.startswith("   ")]


def plant(program: str) -> None:
    """The stand-in, where `INIT` says that GMS and the Chat Server are, and a chat of it that is registered."""
    secret = (ETC / "push-secrets").read_text().strip()
    run(
        "systemd-run", "--unit", "standin", program, "standin", "--gms-nodes", "1", "--servers", "1",
        "--sessions", "20", "--control-port", str(CONTROL),
        "--push-url", f"http://127.0.0.1:8091/push/{secret}",
    )  # fmt: skip
    until("the stand-in", lambda: "chat-1" in run("journalctl", "--unit", "standin", "--no-pager"))


def started(program: str) -> str:
    """Configured, checked and started by what `init` says, word for word; what `init` printed."""
    steps = run(program, *INIT)
    print(steps)
    plant(program)
    [check] = as_told(steps, "Check it, and the hosts it names:")
    checked = run("sh", "-c", check)
    assert "chat-1" in checked, checked
    told(f"{check}: status 0")
    for command in as_told(steps, "Start it, as root."):
        run("sh", "-c", command)
    assert active("asyncchatd.service", *SOCKETS) == ["active"] * 3
    told("started as `init` says: systemctl is-active says so of the service and both sockets")
    return steps


def lives(program: str) -> None:
    """The service on a systemd that is real: credentials, sockets, reload, watchdog, state, journal."""
    pid = shown("asyncchatd", "MainPID")
    owner = Path(f"/proc/{pid}").stat().st_uid
    assert owner != 0
    assert shown("asyncchatd", "DynamicUser") == "yes"
    environment = dict(
        word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in word
    )
    names = run("nsenter", "--target", pid, "--mount", "ls", environment["CREDENTIALS_DIRECTORY"]).split()
    assert set(names) >= {"push-secrets", "store-keys"}
    assert (ETC / "push-secrets").stat().st_uid == 0
    assert (ETC / "push-secrets").stat().st_mode & 0o077 == 0
    told(f"LoadCredential: {', '.join(sorted(names))}, for uid {owner}; the files stay root's, mode 0600")

    database = STATE / "asyncchatd.db"
    assert STATE.is_symlink()
    assert STATE.resolve() == Path("/var/lib/private/asyncchatd")
    assert database.stat().st_uid == owner
    assert STATE.stat().st_mode & 0o777 == 0o700
    told(f"StateDirectory: {STATE} is {STATE.resolve()}, the service's own, mode 0700")

    registered = run(
        "sh", "-c", f"{sys.executable} -c \"import urllib.request as r; "
        f"print(r.urlopen('http://127.0.0.1:{CONTROL}/sessions').read().decode())\" | {program} register",
    )  # fmt: skip
    print(registered)
    looked_after()
    told(f"systemctl status says: {shown('asyncchatd', 'StatusText')}")
    assert post(CONTROL, "/say", {"count": 5})[0] == 200
    until(
        "agents' messages, pushed and acknowledged",
        lambda: logged("push_received") >= 5 or logged("ping_ok") >= 5,
    )

    with pushes("systemctl restart asyncchatd"):
        run("systemctl", "restart", "asyncchatd")
    assert shown("asyncchatd", "MainPID") != pid
    with pushes("systemctl stop asyncchatd, and the next push starts it"):
        run("systemctl", "stop", "asyncchatd")
        until("started by its socket", lambda: active("asyncchatd.service") == ["active"])

    config = ETC / "asyncchatd.toml"
    text = config.read_text()
    pid = shown("asyncchatd", "MainPID")
    config.write_text(text.replace("\nmax_rate = 200\n", "\nmax_rate = 77\n"))
    run("systemctl", "reload", "asyncchatd")
    until("the reload", lambda: logged("config_reloaded"))
    config.write_text(text + "\n[nonsense]\n")
    run("systemctl", "reload", "asyncchatd", check=False)
    until("the refusal", lambda: logged("config_refused"))
    until("the refusal in the status", lambda: "refused" in shown("asyncchatd", "StatusText"))
    assert shown("asyncchatd", "MainPID") == pid
    told(
        f"systemctl reload: config_reloaded, config_refused, and the status says: {shown('asyncchatd', 'StatusText')}"
    )
    config.write_text(text)
    run("systemctl", "reload", "asyncchatd")

    drop_in = Path("/run/systemd/system/asyncchatd.service.d/watchdog.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=4\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "asyncchatd")
    pid, restarts = shown("asyncchatd", "MainPID"), shown("asyncchatd", "NRestarts")
    os.kill(int(pid), signal.SIGSTOP)
    until("the watchdog", lambda: shown("asyncchatd", "NRestarts") != restarts)
    until("the start after it", lambda: active("asyncchatd.service") == ["active"])
    assert "watchdog" in run("journalctl", "--unit", "asyncchatd", "--no-pager").lower()
    assert push() == 200
    told("WatchdogSec: a daemon that stands still is killed and started anew")
    drop_in.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "asyncchatd")

    summary = run(program, "logs", "--summary")
    assert "Watchdog timeout" in summary, summary
    assert "20 registered" in summary, summary
    told("asyncchatd logs --summary reads the journal:")
    print(summary)


def package(first: str, following: str) -> None:
    program = "asyncchatd"
    assert active("asyncchatd.service", *SOCKETS) == ["inactive"] * 3
    assert run("systemctl", "is-enabled", "asyncchatd", check=False).strip() == "disabled"
    told("installed, neither started nor enabled")
    assert "ASYNCCHATD(1)" in run("man", "asyncchatd", env={"MANPAGER": "cat", "MANWIDTH": "100"})
    completed = run(
        "bash", "-c",
        ". /usr/share/bash-completion/bash_completion; . /usr/share/bash-completion/completions/asyncchatd; "
        "complete -p asyncchatd",
    )  # fmt: skip
    assert "asyncchatd" in completed
    assert "check" in run(
        program,
        env={"_ASYNCCHATD_COMPLETE": "bash_complete", "COMP_WORDS": "asyncchatd che", "COMP_CWORD": "1"},
    )
    told("man asyncchatd, and bash completes its commands")
    pwd.getpwnam("asyncchatd")
    assert "/etc/asyncchatd/asyncchatd.toml" in run("dpkg-query", "-W", "-f", "${Conffiles}", "asyncchatd")

    started(program)
    verified = run("systemd-analyze", "verify", "asyncchatd.service", *SOCKETS, "asyncchatd-gateway.socket")
    assert "asyncchatd" not in verified, verified
    lives(program)

    config = ETC / "asyncchatd.toml"
    mine = config.read_text()
    since = [shown(socket, "ActiveEnterTimestampMonotonic") for socket in SOCKETS]
    pid = shown("asyncchatd", "MainPID")
    variables = {"CREDENTIALS_DIRECTORY": str(ETC), "STATE_DIRECTORY": str(STATE)}
    run(program, "store", "backup", "/var/backups/asyncchatd-before.db", env=variables)
    told("asyncchatd store backup: /var/backups/asyncchatd-before.db")
    with pushes("upgrade"):
        said = run("apt-get", "install", "--yes", "-o", "Dpkg::Options::=--force-confold", following)
    assert "Syntax" not in said, said
    assert shown("asyncchatd", "NeedDaemonReload") == "no"
    assert shown("asyncchatd", "Environment") == "NEXT=yes"
    told("the upgrade restarted the service by its new unit")
    assert active("asyncchatd.service", *SOCKETS) == ["active"] * 3
    assert shown("asyncchatd", "MainPID") != pid
    assert [shown(socket, "ActiveEnterTimestampMonotonic") for socket in SOCKETS] == since
    told("after the upgrade another process, and the sockets are those of before")
    assert config.read_text() == mine
    assert config.with_name("asyncchatd.toml.dpkg-dist").exists()
    told("the configuration is kept, and what the new version has is beside it, .dpkg-dist")
    looked_after()
    with pushes("rollback"):
        run(
            "apt-get",
            "install",
            "--yes",
            "--allow-downgrades",
            "-o",
            "Dpkg::Options::=--force-confold",
            first,
        )
    assert [shown(socket, "ActiveEnterTimestampMonotonic") for socket in SOCKETS] == since
    looked_after()
    told(f"after the rollback systemctl status says: {shown('asyncchatd', 'StatusText')}")

    run("apt-get", "remove", "--yes", "asyncchatd")
    assert active("asyncchatd.service", *SOCKETS) == ["inactive"] * 3
    assert config.read_text() == mine
    assert (STATE / "asyncchatd.db").exists()
    assert (ETC / "store-keys").exists()
    assert not Path("/usr/lib/asyncchatd").exists()
    told("removed: nothing runs, the configuration, the keys and the database are there")
    run("dpkg", "--install", first)
    run("systemctl", "start", "asyncchatd.service", *SOCKETS)
    looked_after()
    told("installed again: it goes on where it was")
    logs_to_a_file(program)
    run("apt-get", "purge", "--yes", "asyncchatd")
    left = run("find", "/", "-xdev", "-name", "*asyncchatd*", "-not", "-path", "/tmp/*", "-not", "-path", "/proc/*",
               "-not", "-path", "/sys/*", "-not", "-path", "/test/*").split()  # fmt: skip
    others = ("/var/backups/", "/var/cache/man/")
    unexpected = [path for path in left if not path.startswith(others)]
    assert not unexpected, unexpected
    assert active("asyncchatd.service", *SOCKETS) == ["inactive"] * 3
    told("purged: nothing of it is left but the backup")


def logs_to_a_file(program: str) -> None:
    """As docs/logs.md has it: the drop-in, the path in the configuration, and a reload after the file was renamed."""
    log, config = Path("/var/log/asyncchatd/asyncchatd.log"), ETC / "asyncchatd.toml"
    drop_in = Path("/etc/systemd/system/asyncchatd.service.d/log-file.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text((EXAMPLES / "asyncchatd.service.d/log-file.conf").read_text())
    config.write_text(config.read_text().replace("\n[log]\n", f'\n[log]\nfile = "{log}"\n'))
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "asyncchatd")
    until("the log's file", lambda: log.exists() and "daemon_ready" in log.read_text())
    assert "From here on the log is in a file" in run(program, "logs", "--since", "2m")
    run(program, "check", env={"CREDENTIALS_DIRECTORY": str(ETC), "STATE_DIRECTORY": str(STATE)})
    renamed = log.rename(log.with_name("asyncchatd.log.1"))
    run("systemctl", "reload", "asyncchatd")
    until("the new one", lambda: log.exists() and "config_reloaded" in log.read_text())
    assert "took pushes" in run(program, "logs", str(log), str(renamed))
    told(f"the log in {log}, and a new one after the reload")
    drop_in.unlink()
    run("systemctl", "daemon-reload")


def venv(wheelhouse: str) -> None:
    home = "/opt/asyncchatd"
    run("python3", "-m", "venv", home)
    run(f"{home}/bin/pip", "install", "--no-index", "--find-links", wheelhouse, "asyncchatd")
    told("installed from the wheelhouse, on a host that reaches nothing")
    program = f"{home}/bin/asyncchatd"
    try:
        pwd.getpwnam("asyncchatd")
    except KeyError:
        told("there is no user asyncchatd before the start")
    else:
        raise AssertionError("the user asyncchatd is there before the start")
    started(program)
    owner = Path(f"/proc/{shown('asyncchatd', 'MainPID')}").stat().st_uid
    assert 61184 <= owner <= 65519, owner
    told(f"DynamicUser: uid {owner}, in no file: {'asyncchatd' not in Path('/etc/passwd').read_text()}")
    lives(program)


def main() -> None:
    what, *arguments = sys.argv[1:]
    until(
        "systemd",
        lambda: (
            run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded", "starting")
        ),
    )
    if what == "package":
        package(*arguments)
    else:
        venv(*arguments)
    print("all of it", flush=True)


if __name__ == "__main__":
    main()
