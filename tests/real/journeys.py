"""Runs that are stopped on their way, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import ClientError

from prefect_diffah.engine.store import Store
from prefect_diffah.engine.testing.images import image_of, random_layer, write_layout

from .running import environment_of_its_own, manifest_of, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .services.objects import ObjectStore
    from .services.registries import Registry

PLACES = 10
"""How many places a run is killed at."""
DRIVER = Path(__file__).with_name("mishaps.py")


class Output(Protocol):
    """Where a run's result goes."""

    @property
    def word(self) -> str:
        """As the command line takes it."""

    def glimpse(self) -> object:
        """None where nothing is; else something that tells a whole result from a part of it."""

    def content(self) -> bytes | None:
        """What is there, whole."""

    def debris(self) -> list[str]:
        """What lies beside it."""

    def uploads(self) -> list[str]:
        """What the server there holds of uploads that were begun and not ended; nobody else sees it."""


@dataclass(frozen=True)
class FileOutput:
    """A local file, alone in its folder."""

    path: Path

    @property
    def word(self) -> str:
        return str(self.path)

    def glimpse(self) -> object:
        with contextlib.suppress(FileNotFoundError):
            return self.path.stat().st_size
        return None

    def content(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def debris(self) -> list[str]:
        return [path.name for path in self.path.parent.glob("*") if path != self.path] + [path.name for path in self.path.parent.glob(".*")]

    def uploads(self) -> list[str]:
        return []


@dataclass(frozen=True)
class ObjectOutput:
    """An object of its own prefix."""

    s3: ObjectStore
    key: str
    client: Any = field(repr=False, compare=False)

    @property
    def word(self) -> str:
        return self.s3.url(self.key)

    def glimpse(self) -> object:
        with contextlib.suppress(ClientError):
            return self.client.head_object(Bucket=self.s3.bucket, Key=self.key)["ContentLength"]
        return None

    def content(self) -> bytes | None:
        if self.glimpse() is None:
            return None
        body: bytes = self.client.get_object(Bucket=self.s3.bucket, Key=self.key)["Body"].read()
        return body

    def debris(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=self.s3.bucket, Prefix=self.key.rpartition("/")[0]).get("Contents", [])
        return [item["Key"] for item in listed if item["Key"] != self.key]

    def uploads(self) -> list[str]:
        return [upload["UploadId"] for upload in self.client.list_multipart_uploads(Bucket=self.s3.bucket, Prefix=self.key).get("Uploads", [])]


@dataclass(frozen=True)
class RegistryOutput:
    """A tag in a repository of its own."""

    registry: Registry
    repository: str
    skopeo: str

    @property
    def word(self) -> str:
        return self.registry.reference(self.repository, "v2")

    @property
    def _folder(self) -> Path:
        """Where the distribution keeps a repository."""
        return self.registry.folder / "storage/docker/registry/v2/repositories" / self.repository

    def glimpse(self) -> object:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "_manifests/tags/v2/current/link").read_text()
        return None

    def content(self) -> bytes | None:
        return None if self.glimpse() is None else manifest_of(self.skopeo, self.word, *self.registry.skopeo())

    def debris(self) -> list[str]:
        return []

    def uploads(self) -> list[str]:
        # the distribution refuses to cancel an upload whose request was cut off (416), so nothing can be asked of them here
        return []


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what it did."""

    code: int
    stdout: str
    stderr: str
    log: tuple[str, ...]
    sights: frozenset[object]
    """What was seen at the output while it ran, and when it had ended."""

    @property
    def places(self) -> int:
        return sum(line.startswith("place ") for line in self.log)

    @property
    def done(self) -> list[str]:
        """Keys of the records of steps that were done, not taken from their records."""
        return [line.removeprefix("done ") for line in self.log if line.startswith("done ")]

    @property
    def result(self) -> dict[str, Any]:
        assert self.code == 0, f"ended with {self.code}:\n{self.stdout}\n{self.stderr}"
        data: dict[str, Any] = json.loads(self.stdout)["data"]
        return data


@dataclass(frozen=True)
class Journey:
    """A run that can be repeated: into ``output``, with its state in ``folder``."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    output: Output
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def run(self, where: str = "nowhere", action: str = "kill", interruption: signal.Signals | None = None) -> Outcome:
        """Run it until it ends, watching its output all the while.

        Args:
            where, action: the mishap, see mishaps.py.
            interruption: sent to it once it waits.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        log, stdout, stderr = (self.folder / f"{time.monotonic_ns()}.{name}" for name in ("log", "out", "err"))
        log.touch()
        command = [sys.executable, DRIVER, log, where, action, *self.words, "--output", self.output.word, "--store", self.store, "--json"]
        sights: set[object] = set()
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment_of_its_own(self.environment))
        try:
            deadline = time.monotonic() + 300
            while process.poll() is None:
                sights.add(self.output.glimpse())
                if interruption and "waiting\n" in log.read_text():
                    process.send_signal(interruption)
                    interruption = None
                assert time.monotonic() < deadline, stderr.read_text()
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        sights.add(self.output.glimpse())
        return Outcome(process.returncode, stdout.read_text(), stderr.read_text(), tuple(log.read_text().splitlines()), frozenset(sights))

    def valid_records(self) -> set[str]:
        """Keys of the steps that the store has a valid record of."""
        store, records = Store(str(self.store)), self.store / "records"
        keys = {path.relative_to(records).with_suffix("").as_posix() for path in records.rglob("*.json") if not path.name.startswith(".")}
        return {key for key in keys if store.get_record(key) is not None}

    def debris(self) -> list[str]:
        """What must not be there after a run that ended well."""
        return [*self.output.debris(), *(path.name for path in self.store.rglob("*.part"))]


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nobody disturbs does and makes."""

    places: int
    steps: frozenset[str]
    content: bytes
    sight: object

    @classmethod
    def of(cls, journey: Journey) -> Undisturbed:
        outcome = journey.run()
        assert outcome.result["status"] == "written"
        content = journey.output.content()
        assert content is not None
        assert outcome.sights <= {None, journey.output.glimpse()}
        assert not journey.debris()
        assert journey.valid_records() == set(outcome.done)
        assert len(outcome.done) == len(set(outcome.done)) > 0
        return cls(outcome.places, frozenset(outcome.done), content, journey.output.glimpse())

    def place(self, number: int) -> int:
        """The place of the ``number``-th of ten kills: from the first to the last, spread evenly."""
        assert self.places >= PLACES
        return 1 + round(number * (self.places - 1) / (PLACES - 1))


def assert_survives_a_kill(journey: Journey, undisturbed: Undisturbed, number: int) -> None:
    """Kill it at one of the ten places, and run it again to its end.

    Uploads that it had begun stay on servers, where they are neither seen nor
    in the way; only the servers' owners can tell that nobody goes on with them.
    """
    killed = journey.run(str(undisturbed.place(number)))
    assert killed.code == -signal.SIGKILL, f"ended with {killed.code} after {killed.places} of {undisturbed.places} places:\n{killed.stderr}"
    assert killed.sights <= {None, undisturbed.sight}
    assert journey.output.content() in (None, undisturbed.content)
    recorded = journey.valid_records()
    assert recorded <= undisturbed.steps
    if number == 0:
        assert not recorded
    if number == PLACES - 1:
        assert recorded == undisturbed.steps
        assert journey.output.content() == undisturbed.content

    again = journey.run()
    assert again.result["status"] == ("unchanged" if undisturbed.sight in killed.sights else "written")
    assert again.sights <= {None, undisturbed.sight}
    assert journey.output.content() == undisturbed.content
    assert sorted(again.done) == sorted(undisturbed.steps - recorded)
    assert not journey.debris()


def assert_survives_an_interruption(journey: Journey, undisturbed: Undisturbed, where: str, number: signal.Signals) -> None:
    """Interrupt it where it waits, and run it again to its end."""
    stopped = journey.run(where, "wait", number)
    assert "waiting" in stopped.log
    assert stopped.code == 130, f"ended with {stopped.code}:\n{stopped.stdout}\n{stopped.stderr}"
    assert json.loads(stopped.stdout)["error"]["code"] == "interrupted"
    assert stopped.sights == {None}
    assert not journey.debris()
    assert not journey.output.uploads()
    recorded = journey.valid_records()

    again = journey.run()
    assert again.result["status"] == "written"
    assert journey.output.content() == undisturbed.content
    assert sorted(again.done) == sorted(undisturbed.steps - recorded)
    assert not journey.debris()


def write_versions(folder: Path) -> Path:
    """A layout of an image in two versions, ``v1`` and ``v2``; two of three layers change.

    They are large enough for an archive of two parts on an object store, with
    one of the ten places in between.
    """
    base = random_layer("base", 3_000_000)
    versions = {
        version: image_of([base, random_layer(f"library {version}", 9_000_000), random_layer(f"code {version}", 12_000_000)]) for version in ("v1", "v2")
    }
    return write_layout(folder, versions)


def push(layout: Path, registry: Registry, repository: str, version: str, skopeo: str) -> str:
    """Put a version into a registry; its reference there."""
    reference = registry.reference(repository, version)
    run(skopeo, "copy", registry.skopeo("dest"), f"oci:{layout}:{version}", reference)
    return reference
