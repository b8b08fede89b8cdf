# A compiled module without types, in which JAX finds those of its devices: without them each function that takes a
# device has a part of unknown type.
from typing import Any

class Client:
    platform: str

class Device:
    id: int
    platform: str
    device_kind: str
    process_index: int
    client: Client
    def memory_stats(self) -> dict[str, int] | None: ...

def __getattr__(name: str) -> Any: ...
