"""Finding the programs of PostgreSQL and PgBouncer, and installing them where that is ours to do."""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.server_process import NotInstalled, run, server_user

#: Folder with the programs of the PostgreSQL to test with, in place of the one that is found.
CHOSEN = "CHANDLERY_TEST_POSTGRES"
#: Where packages put servers that are not on the PATH: Debian, Fedora and Homebrew.
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
#: PgBouncer is in no user's PATH on Debian.
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
#: Packages of Debian and its kin.
POSTGRES_PACKAGE, PGBOUNCER_PACKAGE = "postgresql", "pgbouncer"


class PostgresPrograms:
    """One installed PostgreSQL: where its programs are, what it is and what it offers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        said = run([folder / "postgres", "--version"])
        #: Major version.
        self.version = int(re.search(r"(\d+)", said)[1])  # type: ignore[index]

    def __truediv__(self, program: str) -> Path:
        return self.folder / program

    @functools.cached_property
    def offers_timescaledb(self) -> bool:
        """Whether the extension's library and its description are both there."""
        library, shared = self._configured("--pkglibdir"), self._configured("--sharedir")
        return bool(
            library
            and shared
            and (Path(library) / "timescaledb.so").exists()
            and (Path(shared) / "extension" / "timescaledb.control").exists()
        )

    @functools.cached_property
    def offers_icu(self) -> bool:
        """Whether a database may be made with a language's rules of order."""
        return self.version >= 15 and "--with-icu" in (self._configured("--configure") or "")

    def _configured(self, option: str) -> str | None:
        program = self / "pg_config"
        return run([program, option]).strip() if program.exists() else None


@functools.cache
def postgres_programs() -> PostgresPrograms:
    """The PostgreSQL to test with: the chosen one; else one with TimescaleDB, the newest of them.

    :raises NotInstalled: there is none, and it cannot be installed from here.
    """
    found = list(_installed())
    if not found and CHOSEN not in os.environ:
        install(POSTGRES_PACKAGE)
        found = list(_installed())
    if not found:
        raise NotInstalled(
            "no PostgreSQL server was found; install PostgreSQL 15 or newer (initdb, postgres, psql)"
        )
    user = server_user()
    if user is not None and user not in {one.pw_name for one in pwd.getpwall()}:
        raise NotInstalled(
            f"PostgreSQL does not run as root and there is no user {user}; make one or do not be root"
        )
    return max(found, key=lambda one: (one.offers_timescaledb, one.version))


def _installed() -> Iterator[PostgresPrograms]:
    if CHOSEN in os.environ:
        folders = [Path(os.environ[CHOSEN])]
    else:
        on_path = shutil.which("postgres")
        folders = [Path(on_path).resolve().parent] if on_path else []
        folders += [folder for place in PLACES for folder in Path("/").glob(place.removeprefix("/"))]
        if pg_config := shutil.which("pg_config"):
            folders.append(Path(run([pg_config, "--bindir"]).strip()))
    for folder in dict.fromkeys(folders):
        if all((folder / program).exists() for program in ("initdb", "postgres", "psql", "pg_basebackup")):
            yield PostgresPrograms(folder)


@functools.cache
def pgbouncer_program() -> Path:
    """:raises NotInstalled: there is none, and it cannot be installed from here."""
    found = shutil.which("pgbouncer", path=SYSTEM_PATH)
    if found is None:
        install(PGBOUNCER_PACKAGE)
        found = shutil.which("pgbouncer", path=SYSTEM_PATH)
    if found is None:
        raise NotInstalled("PgBouncer was not found; install PgBouncer 1.18 or newer")
    return Path(found)


def install(package: str) -> None:
    """Install a package of Debian where we are root, without starting any service of the system.

    :raises NotInstalled: we are not root, or this is no Debian, or the package cannot be had.
    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalled(
            f"{package} is not installed; install it with `apt-get install {package}`, or run as root"
        )
    sys.stderr.write(f"installing {package} for the tests ...\n")
    sys.stderr.flush()
    cluster = Path("/etc/postgresql-common/createcluster.conf")
    if not cluster.exists():
        cluster.parent.mkdir(parents=True, exist_ok=True)
        cluster.write_text("create_main_cluster = false\n")
    # The answer 101 of this program forbids package scripts to start services.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        if _apt("install", package).returncode:
            _apt("update")
            ran = _apt("install", package)
            if ran.returncode:
                raise NotInstalled(f"{package} cannot be installed: {ran.stderr.strip()[-500:]}")
    finally:
        if ours:
            policy.unlink()


def _apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    options: Sequence[str] = (
        "-o", "DPkg::Lock::Timeout=300",
        "-o", "Dpkg::Options::=--force-confold",
        "--yes",
        "--quiet",
    )  # fmt: skip
    if arguments[0] == "install":
        options = (*options, "--no-install-recommends")
    return subprocess.run(
        ["apt-get", *options, *arguments],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
