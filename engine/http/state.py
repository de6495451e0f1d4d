"""What the routes find in the application."""

from aiohttp import web

from engine.http.channel import Engine

__all__ = ["ENGINE"]

ENGINE = web.AppKey("engine", Engine)
"""How to ask the master."""
