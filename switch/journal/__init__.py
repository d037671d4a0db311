"""Durable state: recovery, groups, snapshots, and the read model that follows them."""
