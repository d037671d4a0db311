"""Connections and turns: how bytes become requests, and durable decisions become bytes."""
