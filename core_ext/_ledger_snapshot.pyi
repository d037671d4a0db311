__pyx_capi__: dict[str, object]  # what the ledger links to
