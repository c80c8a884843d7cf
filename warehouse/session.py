"""How the files of a state folder are opened: for one transaction of the writer, for reading, for looking only.

    locked   a kernel lock, held for the moment of a transaction
    writing  the writer's file; what the block did is committed when it ends well, then the ledger's head is mirrored
    reading  the writer's file read-only, or the published snapshot where the state is only looked at
    publish  brings the snapshot up to date; a damaged one is published anew by whoever finds it and may write

A session holds paths and settings, no connection.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from contracts.errors import IntegrityError, LockTimeout, NotReady
from warehouse import chain, connection, filesums, lock, publish
from warehouse.chain import Head
from warehouse.connection import Connection, Limits
from warehouse.faults import fault
from warehouse.filesums import FileSums

AGAIN = "'palimpsest audit SUBJECT' publishes it anew, also where nothing is to be computed"


class Open:
    """An open transaction: it notes in the ledger what is done."""

    def __init__(self, con: Connection, head: Head, now: datetime) -> None:
        self.con, self.head, self.now = con, head, now

    def note(self, kind: str, body: Mapping[str, Any]) -> Head:
        """Add a ledger entry; ``at`` (UTC) is added to its body."""
        self.head = chain.insert(self.con, self.head, kind, {**body, "at": self.now.isoformat()})
        return self.head


T = TypeVar("T", bound=Open)
_thread = threading.local()  # what this thread has open for reading, by file


class Session:
    """See the module.

    Attributes:
        home: the state folder.
        folder: ``home/warehouse``.
        database: path of the writer's file. ``snapshot``: of the published snapshot. ``head_file``: of ledger.head.
        sums: what is known of files that were read before.
    """

    def __init__(
        self, home: Path, *, limits: Limits, lock_timeout_s: float, clock: Callable[[], datetime], looks: bool = False
    ) -> None:
        self.home = home
        self.folder = home / "warehouse"
        self.database = self.folder / "palimpsest.duckdb"
        self.snapshot = self.folder / "palimpsest.read.duckdb"
        self.head_file = self.folder / "ledger.head"
        self._limits, self._lock_timeout_s, self._clock, self.looks = limits, lock_timeout_s, clock, looks
        self.sums = FileSums(self.folder / filesums.NAME, keeps=not looks)

    @contextmanager
    def writing(self, kind: type[T], *, guarded: bool = True) -> Iterator[T]:
        """Several writes that happen together or not at all; the lock is held for the block, so keep it short.

        Args:
            kind: what the block is given, made of connection, head and time.
            guarded: refuse to write where committed entries are gone.

        Raises:
            LockTimeout: another writer did not end in time.
            IntegrityError: committed entries of the ledger are gone (unless ``guarded`` is False).
        """
        with self.locked(), connection.opened(self.database, limits=self._limits) as con:
            mirrored = chain.read_mirror(self.head_file) if guarded else None
            if guarded:
                chain.guard(con, mirrored)
            con.begin()
            t = kind(con, chain.head_of(con), self._clock())
            try:
                yield t
                fault("writer.before_commit")
                con.commit()
            except BaseException:
                with suppress(duckdb.Error):
                    con.rollback()
                raise
            fault("writer.after_commit")
            if t.head != mirrored:
                chain.write_mirror(self.head_file, t.head)
            fault("writer.after_mirror")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """The writer's file, read-only, with what has not been published yet; holds the lock for the block, so keep it
        short. The published snapshot, without a lock, where the warehouse was opened for looking only.

        Within a reading of the same file and thread it is that one, seen as it was when that began: what is asked
        together is asked in one session, whichever method asks.

        Raises:
            NotReady: opened for looking only, and nothing has been published, or by an earlier version of this program.
            IntegrityError: as :meth:`check_snapshot`.
        """
        if self.looks:
            with self.published() as con:
                yield con
            return
        readings: dict[Path, Connection] = _thread.__dict__.setdefault("readings", {})
        if (held := readings.get(self.database)) is not None:
            yield held
            return
        with self.locked(), connection.opened(self.database, limits=self._limits, read_only=True) as con:
            readings[self.database] = con
            try:
                yield con
            finally:
                del readings[self.database]

    @contextmanager
    def published(self) -> Iterator[Connection]:
        """The published snapshot, without a lock, for what this program asks of it.

        Raises:
            NotReady: nothing has been published, or by an earlier version of this program.
            IntegrityError: as :meth:`check_snapshot`.
        """
        self.check_snapshot()
        try:
            with self.looking_at_snapshot() as con:
                yield con
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise NotReady(
                f"{self.snapshot} was published by an earlier version of this program: palimpsest audit publishes it "
                "anew"
            ) from error

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        """The writer's file, as it lies; without the lock on a medium that cannot be written.

        Raises:
            LockTimeout: a writer is at work.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self.locked())
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
            yield stack.enter_context(connection.opened(self.database, limits=self._limits, read_only=True))

    def looking_at_snapshot(self) -> AbstractContextManager[Connection]:
        """The published snapshot, for comparing it; people use ``Warehouse.query``."""
        return connection.opened(self.snapshot, limits=self._limits, read_only=True)

    def publish(self, *, anew: bool = False) -> bool:
        """Bring the snapshot up to date; False when it already is.

        Args:
            anew: also then.
        """
        with self.locked(), connection.opened(self.database, limits=self._limits) as con:
            chain.guard(con, chain.read_mirror(self.head_file))
            if not anew and self._shows(con):
                self.sums.keep()
                return False
            publish.publish(con, self.snapshot, sums=self.sums)
            return True

    def _shows(self, con: Connection) -> bool:
        """Whether the snapshot is whole, ends where the ledger of ``con`` does, and its SHA-256 is on record."""
        try:
            publish.refuse_damaged(self.snapshot, self.sums)
            recorded = publish.is_recorded(self.snapshot)
            return recorded and publish.snapshot_head(con, self.snapshot) == chain.head_of(con)
        except (IntegrityError, FileNotFoundError):
            return False

    def check_snapshot(self, sums: FileSums | None = None, *, anew: bool = True) -> None:
        """Nothing, where the published snapshot is as it was published. A damaged one is published anew, and that is
        said in the log; nothing is written otherwise.

        Args:
            sums: other than this session's: an empty one reads the file, whatever is known of it.
            anew: publish it anew where it is damaged; else it is refused.

        Raises:
            NotReady: nothing has been published yet.
            IntegrityError: it is damaged and cannot be published anew now; says why, and what to do.
        """
        try:
            publish.refuse_damaged(self.snapshot, sums or self.sums)
        except FileNotFoundError:
            connection.refuse_unpublished(self.snapshot)
        except IntegrityError as damaged:
            if not anew:
                raise
            self._publish_anew(str(damaged))

    def _publish_anew(self, damaged: str) -> None:
        """Publish what the database holds in place of a damaged snapshot.

        Raises:
            IntegrityError: that cannot be done now.
        """
        try:
            if not self.database.exists():
                raise IntegrityError(f"the database {self.database} is gone as well")
            self.publish(anew=True)
        except LockTimeout as error:
            raise IntegrityError(f"{damaged}. A run is writing, and will publish it anew: ask again then") from error
        except OSError as error:
            raise IntegrityError(f"{damaged}. It cannot be replaced from here ({error.strerror}): {AGAIN}") from error
        except IntegrityError as error:
            raise IntegrityError(f"{damaged}; and {error}. Restore the state folder from a backup") from error
        logging.getLogger("palimpsest").warning("%s: it was published anew from the database", damaged)

    def published_head(self) -> Head | None:
        """Ledger head of the published snapshot; None when nothing was published."""
        if not self.snapshot.exists():
            return None
        with self.looking_at_snapshot() as con:
            return chain.head_of(con)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the writer's file for the block.

        Raises:
            LockTimeout: another writer did not end in time.
        """
        with lock.exclusive(self.folder / "writer.lock", timeout_s=self._lock_timeout_s):
            yield
