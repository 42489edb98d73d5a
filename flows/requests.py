"""What a person asks for, as a form or a command line has it: text, no secrets.

A request is checked when it is made and resolved into a job where it runs:
there credentials are looked up and places get their transports. Nothing here
imports Prefect; blocks are loaded by who passes a loader.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, model_validator

from prefect_diffah.engine.access import Access
from prefect_diffah.engine.errors import DiffahError, InvalidOptions, NotFound, PlatformError
from prefect_diffah.engine.images import ImageName, Place
from prefect_diffah.engine.model import Model
from prefect_diffah.engine.oci import FileTransport, Platform, Reference
from prefect_diffah.engine.oci.reference import refuse_userinfo
from prefect_diffah.engine.pipeline import ExportJob, ImportJob
from prefect_diffah.engine.storage import FileLocation
from prefect_diffah.engine.store import Store, default_store
from prefect_diffah.engine.transports import WriteOptions

__all__ = ["AccessRequest", "BlockLoader", "ExportRequest", "ImportRequest", "StoreRequest", "VerifyRequest", "keep_credentials"]

BlockLoader = Callable[[str, str], Any]
"""``(kind, name)`` → the block: ``registry-credentials`` or ``delta-store``."""


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        try:
            parse(text)
        except DiffahError as error:
            raise ValueError(f"{error.message}. {error.next_action}") from error
        return text

    return AfterValidator(check)


def _platform(text: str) -> Platform:
    if text == "all":
        raise PlatformError("platform 'all' is reserved for whole indexes, which are not handled yet", next_action="Name one platform, such as linux/amd64.")
    return Platform.parse(text)


ImageText = Annotated[str, _checked(Reference.parse)]
UrlText = Annotated[str, _checked(refuse_userinfo)]
DeltaText = Annotated[str, _checked(lambda text: Reference.of_file(text, "oci-archive"))]
PlatformText = Annotated[str, _checked(_platform)]
NameText = Annotated[str, _checked(ImageName.parse)]


_kept_credentials: dict[str, str] = {}


def keep_credentials(name: str, value: str) -> None:
    """Make ``USERNAME:PASSWORD`` known in this process under ``name``, as an environment variable would, but to nobody else."""
    _kept_credentials[name] = value


class AccessRequest(Model):
    """How one place is reached. Credentials are named here, never given."""

    model_config = ConfigDict(extra="forbid")

    credentials: str | None = Field(None, title="Credentials block", description="Name of a RegistryCredentials block.", examples=["production-registry"])
    creds_env: str | None = Field(
        None, title="Credentials variable", description="Environment variable that holds USERNAME:PASSWORD where the run happens.", examples=["REGISTRY_CREDS"]
    )
    registry_token_file: str | None = Field(None, title="Token file", description="File that holds a bearer token.")
    no_creds: bool = Field(False, title="Anonymous", description="Send no credentials, whatever the machine has.")
    authfile: str | None = Field(None, title="Authfile", description="Path of an auth.json, instead of the default ones.")
    cert_dir: str | None = Field(None, title="Certificates", description="Folder with *.crt authorities and *.cert and *.key pairs.")
    tls_verify: bool | None = Field(None, title="Verify TLS", description="False accepts any certificate, and plain HTTP.")
    store_block: str | None = Field(None, title="Store block", description="Name of a DeltaStore block whose storage options open this place.")

    @model_validator(mode="after")
    def _one_way(self) -> AccessRequest:
        given = [name for name in ("credentials", "creds_env", "registry_token_file") if getattr(self, name)] + ["no_creds"] * self.no_creds
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        return self

    def resolve(self, blocks: BlockLoader | None = None) -> Access:
        """Look the credentials up.

        Raises:
            InvalidOptions: a variable that is unset or malformed, or a block where there are none.
            NotFound: no such file or block.
        """
        fields: dict[str, Any] = {"anonymous": self.no_creds, "authfile": self.authfile, "cert_dir": self.cert_dir, "tls_verify": self.tls_verify}
        if self.creds_env:
            user, colon, password = _kept_credentials.get(self.creds_env, os.environ.get(self.creds_env, "")).partition(":")
            if not colon:
                raise InvalidOptions(f"the environment variable {self.creds_env} does not hold USERNAME:PASSWORD")
            fields |= {"username": user, "password": SecretStr(password)}
        if self.registry_token_file:
            fields["registry_token"] = SecretStr(FileLocation(self.registry_token_file).read(64 * 1024).decode(errors="replace").strip())
        if self.credentials:
            block = _block(blocks, "registry-credentials", self.credentials)
            fields |= {key: value for key, value in block.items() if fields.get(key) is None}
        if self.store_block:
            fields["storage_options"] = _block(blocks, "delta-store", self.store_block)["storage_options"]
        for path in (self.authfile, self.cert_dir):
            if path and not os.path.exists(path):
                raise NotFound(f"{path} does not exist", path=path)
        return Access(**fields)


def _block(blocks: BlockLoader | None, kind: str, name: str) -> dict[str, Any]:
    if blocks is None:
        raise InvalidOptions(f"the block {name} needs Prefect", next_action="Run without --direct, or give credentials by authfile or environment.")
    return dict(blocks(kind, name))


class _Located(Model):
    model_config = ConfigDict(extra="forbid")

    workdir: str | None = Field(None, title="Work folder", description="Folder for temporary files; by default the system's.")

    def _place(self, text: str, access: AccessRequest, blocks: BlockLoader | None, transport: FileTransport | None = None) -> Place:
        reference = Reference.of_file(text, transport) if transport else Reference.parse(text)
        return Place(reference=reference, access=access.resolve(blocks), workdir=self.workdir)


class StoreRequest(_Located):
    """Where state is kept."""

    store: UrlText | None = Field(
        None, title="Store", description="Path or fsspec URL of the store for blobs and records; by default the user's cache.", examples=["s3://builds/store"]
    )
    store_block: str | None = Field(None, title="Store block", description="Name of a DeltaStore block, instead of a path or URL.")

    @model_validator(mode="after")
    def _one_store(self) -> StoreRequest:
        if self.store and self.store_block:
            raise ValueError("store and store_block exclude each other; give one of them")
        return self

    def open_store(self, blocks: BlockLoader | None) -> Store:
        """The store that this request names."""
        if self.store_block:
            block = _block(blocks, "delta-store", self.store_block)
            return Store(block["url"], Access(storage_options=block["storage_options"]))
        return Store(self.store or default_store())


class _Request(StoreRequest):
    workers: int = Field(4, ge=1, le=64, strict=True, title="Workers", description="Blobs moved at a time.")
    output: DeltaText
    output_format: FileTransport | None = None

    @model_validator(mode="after")
    def _one_format(self) -> _Request:
        transport = Reference.of_file(self.output, self.output_format or "oci").transport
        if self.output_format and transport != self.output_format:
            raise ValueError(f"the output {self.output} is {transport}, the output format {self.output_format}; give one of the two, or make them agree")
        return self


class _WritingRequest(_Request):
    name: NameText | None = Field(
        None, title="Name", description="What the image is called where it arrives; by default the target's last path component and tag.", examples=["app:v2"]
    )
    output_access: AccessRequest = Field(AccessRequest(), title="Output access", description="How the output is reached.")
    dry_run: bool = Field(False, title="Dry run", description="Check everything and report, write nothing.")
    force: bool = Field(False, title="Force", description="Replace an output that holds something else.")

    def _options(self) -> WriteOptions:
        return WriteOptions(force=self.force, workers=self.workers, mtime=_source_date())

    def _image_name(self) -> ImageName | None:
        return ImageName.parse(self.name) if self.name else None


class ExportRequest(_WritingRequest):
    """Make a delta archive: what the target has and the baselines have not."""

    target: ImageText = Field(
        title="Target", description="The image to deliver, as a reference with a transport.", examples=["docker://registry.example.com/app:v2"]
    )
    baselines: tuple[ImageText, ...] = Field(
        (),
        title="Baselines",
        description="Images that the receiver has; layers of any of them need not travel.",
        examples=[["docker://registry.example.com/app:v1"]],
    )
    baseline_manifests: tuple[str, ...] = Field(
        (), title="Baseline manifests", description="Files with the manifest.json of baselines that are gone.", examples=[["app_v1.manifest.json"]]
    )
    output: DeltaText = Field(
        title="Output", description="Path, fsspec URL, or reference (docker://, oci:, oci-archive:) to write the delta to.", examples=["app_v1_to_v2.tar"]
    )
    output_format: Literal["oci-archive", "oci", "dir"] | None = Field(
        None, title="Output format", description="What a plain path holds; by default oci-archive."
    )
    platform: PlatformText | None = Field(
        None, title="Platform", description="os/architecture[/variant]; needed where the target is an index.", examples=["linux/amd64"]
    )
    patch: Literal["off"] = Field("off", title="Patch", description="How changed layers travel: off = whole.")
    target_access: AccessRequest = Field(AccessRequest(), title="Target access", description="How the target is reached.")
    baseline_access: AccessRequest = Field(AccessRequest(), title="Baseline access", description="How the baseline is reached.")

    def resolve(self, blocks: BlockLoader | None = None) -> ExportJob:
        """The job; raises what resolving its parts raises."""
        return ExportJob(
            target=self._place(self.target, self.target_access, blocks),
            baselines=tuple(self._place(text, self.baseline_access, blocks) for text in self.baselines),
            baseline_manifests=tuple(FileLocation(path, self.baseline_access.resolve(blocks)) for path in self.baseline_manifests),
            output=self._place(self.output, self.output_access, blocks, self.output_format or "oci-archive"),
            store=self.open_store(blocks),
            platform=_platform(self.platform) if self.platform else None,
            name=self._image_name(),
            dry_run=self.dry_run,
            options=self._options(),
        )

    @model_validator(mode="after")
    def _against_something(self) -> ExportRequest:
        if not self.baselines and not self.baseline_manifests:
            raise ValueError("a delta needs a baseline; give one with --baseline, or its manifest with --baseline-manifest")
        return self


class ImportRequest(_WritingRequest):
    """Rebuild an image from a delta archive and what is here already."""

    delta: DeltaText = Field(title="Delta", description="The archive: path, fsspec URL, or reference.", examples=["app_v1_to_v2.tar"])
    baselines: tuple[ImageText, ...] = Field(
        (), title="Baselines", description="Images that together hold what the delta requires.", examples=[["docker://registry.internal/app:v1"]]
    )
    output: DeltaText = Field(
        title="Output", description="Where the image goes: path, fsspec URL, or reference.", examples=["app_v2.tar", "docker://registry.internal/app:v2"]
    )
    output_format: FileTransport | None = Field(None, title="Output format", description="What a plain path holds; by default docker-archive.")
    delta_access: AccessRequest = Field(AccessRequest(), title="Delta access", description="How the delta is reached.")
    baseline_access: AccessRequest = Field(AccessRequest(), title="Baseline access", description="How the baseline is reached.")

    def resolve(self, blocks: BlockLoader | None = None) -> ImportJob:
        """The job; raises what resolving its parts raises."""
        return ImportJob(
            delta=self._place(self.delta, self.delta_access, blocks, "oci-archive"),
            baselines=tuple(self._place(text, self.baseline_access, blocks) for text in self.baselines),
            output=self._place(self.output, self.output_access, blocks, self.output_format or "docker-archive"),
            store=self.open_store(blocks),
            name=self._image_name(),
            dry_run=self.dry_run,
            options=self._options(),
        )


class VerifyRequest(_Located):
    """Check a delta, and whether the baselines have what it requires."""

    delta: DeltaText
    baselines: tuple[ImageText, ...] = ()
    delta_access: AccessRequest = AccessRequest()
    baseline_access: AccessRequest = AccessRequest()

    def places(self) -> tuple[Place, list[Place]]:
        """The delta's place and the baselines'."""
        baselines = [self._place(text, self.baseline_access, None) for text in self.baselines]
        return self._place(self.delta, self.delta_access, None, "oci-archive"), baselines


def _source_date() -> int:
    """``SOURCE_DATE_EPOCH`` (reproducible-builds.org), else 0."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isascii() or not text.isdigit() or int(text) > 0o77777777777:
        raise InvalidOptions(f"SOURCE_DATE_EPOCH is {text[:40]!r}, not a number of seconds")
    return int(text)
