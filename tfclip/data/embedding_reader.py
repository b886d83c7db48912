"""Files of embeddings larger than memory, read some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tfclip.data.embeddings import (
    EmbeddingTable,
    check_suffix,
    import_pyarrow,
    parquet_batches,
    parquet_columns,
    parquet_damage_named,
    parquet_description,
    parse_description,
)
from tfclip.errors import TableError
from tfclip.untrusted import is_file

if TYPE_CHECKING:
    import pyarrow

_BUFFER = 2**20  # bytes of a column of a parquet file in memory, which else is a whole row group


class EmbeddingReader:
    """A file of embeddings whose rows come in batches; use it in a ``with`` block.

    Of a ``.parquet`` no more is in memory than a batch; a ``.safetensors``, whose names are one
    text, is read as a whole.

    Args:
        path: A file that ``EmbeddingTable.save`` wrote.

    Attributes:
        num_rows: How many rows it has.
        width: Width of the embeddings.
        model: As in ``EmbeddingTable``; so are ``revision`` and ``fingerprint``.

    Raises:
        TableError: The file is missing, damaged, of another kind or from a newer version.
        MissingExtraError: ``.parquet`` without pyarrow.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_suffix(self.path)
        if not is_file(self.path):
            raise TableError(f"cannot read {path}: there is no such file")
        self._table: EmbeddingTable | None = None
        self._file: Any = None
        if self.path.suffix == ".parquet":
            self._open_parquet()
        else:
            self._table = EmbeddingTable.load(self.path)
            self.num_rows, self.width = self._table.embeddings.shape
            self._described = {
                name: getattr(self._table, name) for name in ("model", "revision", "fingerprint")
            }
        self.model: str = self._described["model"]
        self.revision: str | None = self._described["revision"]
        self.fingerprint: str = self._described["fingerprint"]

    def _open_parquet(self) -> None:
        import_pyarrow("reading")
        import pyarrow.parquet

        with parquet_damage_named(self.path):
            self._file = pyarrow.parquet.ParquetFile(
                self.path, buffer_size=_BUFFER, pre_buffer=False
            )
            schema = self._file.schema_arrow
            self.num_rows: int = self._file.metadata.num_rows
        text = parquet_description(self.path, schema)
        try:
            self._described = parse_description(self.path, text)
            self.width: int = schema.field("embedding").type.list_size
        except (KeyError, AttributeError) as error:
            raise TableError(f"{self.path} lacks embeddings of one width") from error
        except TableError as error:
            raise TableError(f"{self.path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def batches(self, rows: int) -> Iterator[EmbeddingTable]:
        """Yield the rows in their order, ``rows`` at a time; the last ones may be fewer.

        That a name is unique is checked within a batch.

        Raises:
            TableError: What is read next is damaged.
        """
        if self._table is not None:
            for start in range(0, self.num_rows, rows):
                yield self._table.select(range(start, min(start + rows, self.num_rows)))
            return
        for table in self._parquet_rows(rows):
            yield self._made(table)

    def _parquet_rows(self, rows: int) -> Iterator[pyarrow.Table]:
        import pyarrow

        waiting: list[Any] = []
        batches = parquet_batches(self.path, self._file)
        while True:
            with parquet_damage_named(self.path):
                batch = next(batches, None)
            if batch is None:
                break
            waiting.append(batch)
            while sum(batch.num_rows for batch in waiting) >= rows:
                table = pyarrow.Table.from_batches(waiting)
                yield table.slice(0, rows)
                waiting = table.slice(rows).to_batches()
        if waiting:
            yield pyarrow.Table.from_batches(waiting)

    def _made(self, table: pyarrow.Table) -> EmbeddingTable:
        columns = parquet_columns(self.path, table)
        try:
            return EmbeddingTable(**columns, **self._described)
        except TableError as error:
            raise TableError(f"{self.path}: {error}") from error
