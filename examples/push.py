"""A push as GMS sends one: does the receiver take it?

    python examples/push.py http://127.0.0.1:8091/push/SECRET --chat CHAT_ID --user USER_ID

Exit status 0 when it was answered 200, which means that asyncchatd has it on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import aiohttp


async def push(url: str, chat_id: str, user_id: str, device_id: str) -> int:
    """The HTTP status of the answer."""
    body = {
        "deviceId": device_id,
        "chatId": chat_id,
        "userId": user_id,
        "message": {"type": "Message", "from": {"type": "Agent", "nickname": "Anna"}, "text": "Good morning"},
    }
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        return response.status


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="customhttp.url of GMS: http://HOST:PORT/push/SECRET")
    parser.add_argument("--chat", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--device", default="phone-1")
    options = parser.parse_args()
    status = asyncio.run(push(options.url, options.chat, options.user, options.device))
    print("taken" if status == 200 else f"refused: HTTP {status}")
    sys.exit(status != 200)


if __name__ == "__main__":
    main()
