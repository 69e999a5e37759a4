"""Runs a Python script whose class `GmsApi` speaks the Chat API, for the runner beside it: the same lines as xhr.js.

python script.py SCRIPT BASE SERVICE POLL_MS
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import sys
import tempfile
import threading
from typing import Any


def main() -> None:
    path, base, service, poll = sys.argv[1:]
    lines = sys.stdout
    asked: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def tell(**said: object) -> None:
        lines.write(json.dumps(said) + "\n")
        lines.flush()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(json.loads(line))
        asked.put(None)

    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as directory:
        spec = importlib.util.spec_from_file_location("client", path)
        assert spec is not None
        assert spec.loader is not None
        client = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(client)
        first = {
            "method": "POST",
            "url": f"{base}/genesys/2/chat/{service}/",
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
            "data": {"nickname": "Ann", "subject": "Parcel"},
        }
        request = os.path.join(directory, "data.json")
        with open(request, "w") as file:
            json.dump(first, file)
        api = client.GmsApi(request)
        api.create(0)
        tell(began=api.gms_dict["chatId"])
        threading.Thread(target=listen, daemon=True).start()
        while True:
            with contextlib.suppress(queue.Empty):
                while (said := asked.get(timeout=int(poll) / 1000)) is not None:
                    if "say" in said:
                        api.send(said["say"])
                return
            for event in api.refresh(0) or ():
                if event["type"] == "Message":
                    tell(shown=event["text"], **{"from": event["from"]["type"]})
                if event["type"] == "ParticipantLeft":
                    tell(ended=True)
                    return


if __name__ == "__main__":
    main()
