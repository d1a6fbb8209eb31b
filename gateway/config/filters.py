"""The options of the built-in filters, and the form of an entry of a route's `filters`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from gateway.config.section import Section
from gateway.config.values import Rate, Seconds, Size, parse_address

Coding = Literal["gzip", "deflate"]
ThrottleScope = Literal["route", "client"]
ScanErrorPolicy = Literal["refuse", "pass"]


def _parse_positive(value: float) -> float:
    if not value:
        raise ValueError("a rate of 0 stops every transfer: write a rate like 5MB/s")
    return value


def _parse_clamd(value: str) -> str:
    if not value.startswith("unix:/"):
        try:
            parse_address(value)
        except ValueError:
            raise ValueError(
                f"{value!r} is not an address of clamd: write unix:/run/clamav/clamd.ctl or host:port"
            ) from None
    return value


class Digest(Section):
    """Hash every file, and verify the Content-Digest or Repr-Digest that its sender gave (RFC 9530)."""

    algorithm: Literal["sha256", "sha512", "sha1", "md5", "crc32c", "blake2b", "blake3"] = Field(
        "sha256",
        description="Algorithm of the digest, which is reported in the log, in the response documents of split and "
        "store, and in the header `X-Upload-Digest` of forwarded responses. Files are stored with this digest in "
        "place of the SHA-256 that `store` reports without it. blake3 takes less than half the time of sha256; blake3 "
        "and crc32c need the packages of these names.",
    )


class Sniff(Section):
    """Allow only files whose first bytes are of an allowed type; name and Content-Type are ignored."""

    allow: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Allowed media types, with `*` for any characters, for example image/*, application/pdf."
    )


class Throttle(Section):
    """Limit the rate of uploads."""

    rate: Annotated[Rate, AfterValidator(_parse_positive)] = Field(description="Limit in bytes per second.")
    per: ThrottleScope = Field(
        "route", description="Scope of the limit: all uploads of the route together, or those of each client address."
    )


class Compress(Section):
    """Compress files while they are streamed."""

    coding: Coding = Field("gzip", description="Format: gzip (RFC 1952), or deflate, which is zlib (RFC 1950).")
    level: int = Field(6, ge=1, le=9, description="Compression level, from 1 (fastest) to 9 (smallest).")


class Decompress(Section):
    """Decompress files while they are streamed; gzip and zlib are distinguished by their first bytes."""

    max_bytes: Size = Field(
        10 * 2.0**30, description="Bytes of one file after decompression; protects against decompression bombs."
    )


class Scan(Section):
    """Send files to ClamAV's daemon while they are streamed, and cut an infected file before its last chunk."""

    clamd: Annotated[str, AfterValidator(_parse_clamd)] = Field(
        description="Address of clamd: unix:/run/clamav/clamd.ctl, or host:port. clamd's StreamMaxLength (25 MB by "
        "default) limits the size of a file: raise it to the largest you accept."
    )
    timeout: Seconds = Field(60.0, description="Limit for clamd to accept a chunk, and to respond at the file's end.")
    on_error: ScanErrorPolicy = Field(
        "refuse", description="If clamd fails: refuse the file (503), or pass the file without a scan."
    )


class FilterChoice(Section):
    """One filter: a name with options, or only a name. A name that is not built in is that of a plug-in."""

    model_config = ConfigDict(frozen=True, extra="allow")

    digest: Digest | None = Field(None, description="Hash files and verify the digests that senders give.")
    sniff: Sniff | None = Field(None, description="Allow files by their magic bytes; needs the extra `sniff`.")
    throttle: Throttle | None = Field(None, description="Limit the rate of uploads.")
    scan: Scan | None = Field(None, description="Scan files for malware with ClamAV.")
    compress: Compress | None = Field(None, description="Compress files; forms are re-encoded.")
    decompress: Decompress | None = Field(None, description="Decompress files; forms are re-encoded.")

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        """Turn a name without options into a name with empty options."""
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            return {name: {} if options is None else options for name, options in value.items()}
        return value

    @model_validator(mode="after")
    def _check_single(self) -> FilterChoice:
        if len(self.model_fields_set) != 1:
            raise ValueError("a filter is one name with its options: write a new `- item` for each filter")
        return self

    @property
    def name(self) -> str:
        """The name of the filter."""
        return next(iter(self.model_fields_set))

    @property
    def options(self) -> Any:
        """The options: a section, or the unchecked YAML value for a plug-in."""
        return getattr(self, self.name)
