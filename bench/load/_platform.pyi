from core_ext._mac import MacKey

def approve(
    fds: list[int], keys: list[MacKey], stop_fd: int, business_date: bytes
) -> dict[str, int]: ...
