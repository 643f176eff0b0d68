"""The plugin inside aiohttp: the scope's life, the middleware, answers, clients that leave."""
