"""The Clash REST and websocket API, as sing-box and mihomo speak it, so that their dashboards work with the engine.

routes       which path is served by whom
values       the engine's values in the API's words (pure)
streams      traffic, connections, memory, logs: once, or again and again over a websocket
"""
