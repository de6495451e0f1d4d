"""The asyncio side of flows: tasks open and close them, reader and writer callbacks move their data."""
