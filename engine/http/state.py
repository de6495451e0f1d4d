"""What the routes find in the application."""

from aiohttp import web

from engine.http.channel import Engine
from engine.http.door import Door

__all__ = ["DOOR", "ENGINE"]

ENGINE = web.AppKey("engine", Engine)
"""How to ask the master."""
DOOR = web.AppKey("door", Door)
"""Who came in, and who was refused."""
