"""A desk in an office: pages, names, a chat that stays open, a call now and then, a file up or down."""

import random

from locust import FastHttpUser, between, task

from engine.demo import bulk
from loadtests.users.http import get
from loadtests.users.request import TIMEOUT
from loadtests.users.streams import download, transfer
from loadtests.users.udp import call, question
from loadtests.users.websocket import chat

__all__ = ["Office"]

PAGE_PARTS = (3, 10)  # requests that a page takes, between


class Office(FastHttpUser):
    """One person; does one thing at a time, with short pauses."""

    weight = 4
    wait_time = between(0.2, 1.0)
    connection_timeout = network_timeout = TIMEOUT

    @task(20)
    def page(self) -> None:
        """Look a name up and load a page with its parts."""
        question(self)
        for _ in range(random.randint(*PAGE_PARTS)):
            get(self, "GET office page")

    @task(4)
    def chat(self) -> None:
        """Exchange messages."""
        chat(self)

    @task(2)
    def call(self) -> None:
        """Talk for a second."""
        call(self)

    @task(1)
    def fetch(self) -> None:
        """Fetch a file."""
        transfer(self, "office download", download, random.uniform(0.5, 2.0))

    @task(1)
    def put(self) -> None:
        """Put a file."""
        transfer(self, "office upload", bulk.upload, random.uniform(0.5, 2.0))
