"""An S3 server that is not a mock: versitygw over a folder."""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.session import Session
from pydantic import Secret

from prefect_diffah.engine.access import Access

from .processes import PATIENCE, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGION = "us-east-1"


@dataclass(frozen=True)
class ObjectStore:
    """A running S3 server, one of its buckets, and who may use it."""

    endpoint: str
    bucket: str
    key: str
    secret: str = field(repr=False)
    region: str = REGION

    @property
    def storage_options(self) -> dict[str, Any]:
        """s3fs's keyword arguments."""
        return {"key": self.key, "secret": self.secret, "client_kwargs": {"endpoint_url": self.endpoint}}

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which AWS clients reach it by themselves."""
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_ENDPOINT_URL": self.endpoint, "AWS_DEFAULT_REGION": self.region}

    @property
    def access(self) -> Access:
        return Access(storage_options=Secret(self.storage_options))

    def url(self, path: str) -> str:
        """``s3://`` URL of ``path`` in the bucket."""
        return f"s3://{self.bucket}/{path}"

    def client(self) -> Any:
        """botocore's client: the S3 API itself, no retries."""
        return Session().create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )


@contextlib.contextmanager
def object_store(program: str, folder: Path) -> Iterator[ObjectStore]:
    """Run versitygw with its files below ``folder``."""
    key, secret = "testkey", secrets.token_hex(16)
    data, metadata = folder / "data", folder / "metadata"
    data.mkdir(parents=True)
    metadata.mkdir()
    # metadata beside the files: not every filesystem has the extended attributes it would use otherwise
    command = [program, "--quiet", "--port", "127.0.0.1:0", "--region", REGION, "posix", "--sidecar", str(metadata), str(data)]
    with serving(command, folder, {"ROOT_ACCESS_KEY_ID": key, "ROOT_SECRET_ACCESS_KEY": secret}) as port:
        store = ObjectStore(endpoint=f"http://127.0.0.1:{port}", bucket="tests", key=key, secret=secret)
        _create_bucket(store)
        yield store


def _create_bucket(store: ObjectStore) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            store.client().create_bucket(Bucket=store.bucket)
        except BotoCoreError:
            # it listens before it serves
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
