from typing import BinaryIO

from pyarrow import Table

def write_table(table: Table, where: BinaryIO) -> None: ...
