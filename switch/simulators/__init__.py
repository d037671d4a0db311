"""The other sides of our connections, for the demo, for tests and for trying things by hand."""
