"""The steps of the Containerfile without an engine: `.ci/deb-test` runs them in roots made by debootstrap.

    containerfile.py BASE IMAGE      makes IMAGE from BASE; IMAGE/start then does what an engine would

A step that is not known here fails. What an engine does besides, layers, volumes, the network, is not tried.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT = (
    "--no-systemd --dir /var/lib/asyncchatd --gms http://gms-1:8080/genesys --service support --listen :8091"
)
FOR_THE_ENGINE = {"VOLUME", "EXPOSE", "STOPSIGNAL"}


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction and what stands behind it, without comments, on one line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        yield instruction, rest.strip()


def inside(root: Path, command: str) -> None:
    shell = ["chroot", str(root), "/bin/sh", "-e", "-c", command]
    subprocess.run(shell, check=True, timeout=900, stdout=subprocess.DEVNULL, env={"PATH": PATH})


def build(base: Path, image: Path) -> None:
    stages: dict[str, Path] = {}
    root, settings = image, dict[str, str]()
    for instruction, rest in steps((ROOT / "Containerfile").read_text()):
        match instruction:
            case "FROM":
                _, _, name = rest.partition(" AS ")
                root = image.with_name(f"{image.name}-{name}") if name else image
                shutil.rmtree(root, ignore_errors=True)
                subprocess.run(["cp", "-a", str(base), str(root)], check=True)
                stages[name] = root
            case "RUN":
                inside(root, f"export DEBIAN_FRONTEND=noninteractive; {rest}")
            case "COPY":
                *options, source, target = shlex.split(rest)
                origin = stages[options[0].removeprefix("--from=")] if options else ROOT
                copied = ["cp", "-a", f"{origin}/{source.lstrip('/')}", f"{root}{target}"]
                subprocess.run(copied, check=True)
            case "ENV" | "WORKDIR" | "USER" | "ENTRYPOINT" | "CMD" | "HEALTHCHECK":
                settings[instruction] = rest
            case _ if instruction in FOR_THE_ENGINE:
                pass
            case _:
                raise SystemExit(f"{instruction}: expected a step that is known here")
    (image / "start").write_text(start(settings))


def start(settings: dict[str, str]) -> str:
    """What is done in a container, as docs/installing.md says, as a script of the shell."""
    user, entry = settings["USER"], shlex.join(json.loads(settings["ENTRYPOINT"]))
    health = shlex.join(json.loads(settings["HEALTHCHECK"].partition("CMD ")[2]))
    as_user = f"setpriv --reuid={user} --regid={user} --clear-groups env {settings['ENV']}"
    return f"""set -e
cd {settings["WORKDIR"]}
{as_user} {entry} init {INIT}
{as_user} {entry} {shlex.join(json.loads(settings["CMD"]))} &
daemon=$!
until {as_user} {health}; do kill -0 $daemon; sleep 0.2; done
kill -TERM $daemon
wait $daemon
echo "the daemon ended by itself"
"""


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
