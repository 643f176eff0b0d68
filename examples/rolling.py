"""Two processes on one port, replaced one after the other, without gunicorn.

export DATABASE_URL=postgresql://localhost/app
python examples/rolling.py &
python examples/rolling.py &
curl http://127.0.0.1:8080/
Start a third; once it says that it runs, kill -TERM the first. And so on.
"""

import asyncio
import os
import signal

from aiohttp import web
from gunicorn_app import make_runner


async def serve(runner: web.AppRunner, port: int) -> None:
    """As run_app does, with a runner of one's own; and a second signal does not cut the end short."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True).start()
        print(f"Running on http://127.0.0.1:{port}", flush=True)
        await ended.wait()
    finally:
        await runner.cleanup()


async def main() -> None:
    await serve(await make_runner(), int(os.environ.get("PORT", "8080")))


if __name__ == "__main__":
    asyncio.run(main())
