"""HTTP: hosting of ASGI applications in our nursery, and what the peers and people see of them."""
