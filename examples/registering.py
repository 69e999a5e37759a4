"""What a chat application has to tell asyncchatd: a new chat, its newest tokens, and its end.

    python examples/registering.py http://127.0.0.1:8092 --chat CHAT_ID ...

`Asyncchatd` is the part to take over. GMS' replies are passed in as they came; from "request chat" and from every reply
that follows, because each may bring another secure key or alias, and whoever has an old one is thrown out.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from types import TracebackType
from urllib.parse import quote

import aiohttp


class Asyncchatd:
    """The control API of asyncchatd, as far as a chat application needs it. Use as `async with`."""

    def __init__(self, base: str, *, service: str, token: str | None = None) -> None:
        self._service = service
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = aiohttp.ClientSession(base, headers=headers, raise_for_status=False)

    async def tell(self, reply: Mapping[str, object], *, device_id: str | None = None) -> None:
        """Tell a reply of GMS with statusCode 0: a new chat, or newer tokens of a known one."""
        if reply.get("statusCode") != 0:
            return  # it brings no tokens
        if reply.get("chatEnded"):
            await self.end(str(reply["chatId"]))
            return
        path = f"/v1/sessions/{quote(str(reply['chatId']), safe='')}"
        beside = {"service": self._service} | ({"device_id": device_id} if device_id else {})
        # GMS' reply is taken as it is. What customers and agents write is not needed, and stays here.
        async with self._http.put(path, params=beside, json={**reply, "messages": []}) as response:
            if response.status >= 400:
                raise RuntimeError(f"asyncchatd refused the session: {await response.text()}")

    async def end(self, chat_id: str) -> None:
        """The chat is over: it is pinged no more."""
        async with self._http.delete(f"/v1/sessions/{quote(chat_id, safe='')}") as response:
            response.release()

    async def state(self, chat_id: str) -> str | None:
        """What asyncchatd says of the chat: live, incomplete, ended, or nothing."""
        async with self._http.get(f"/v1/sessions/{quote(chat_id, safe='')}") as response:
            return None if response.status == 404 else str((await response.json())["state"])

    async def __aenter__(self) -> Asyncchatd:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="control.listen of asyncchatd: http://HOST:PORT")
    for name in ("chat", "user", "key", "alias"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--service", default="customer-support")
    options = parser.parse_args()
    reply = {
        "statusCode": 0,
        "chatId": options.chat,
        "userId": options.user,
        "secureKey": options.key,
        "alias": options.alias,
        "nextPosition": 2,
    }
    async with Asyncchatd(options.base, service=options.service) as asyncchatd:
        await asyncchatd.tell(reply, device_id="phone-1")
        print(f"{options.chat}: {await asyncchatd.state(options.chat)}")
        await asyncchatd.end(options.chat)
        print(f"{options.chat}: {await asyncchatd.state(options.chat)}")


if __name__ == "__main__":
    asyncio.run(main())
