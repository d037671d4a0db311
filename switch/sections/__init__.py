"""Sections of the configuration that belong to one product each."""
