"""The options of the built-in filters, and the form of an entry of a route's `filters`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from gateway.config.document import KeyPath
from gateway.config.kinds import Check, Definitions, Findings
from gateway.config.section import Section, config_key
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

    algorithm: Literal["sha256", "sha512", "sha1", "md5", "crc32c", "blake2b", "blake3"] = config_key(
        "sha256",
        description="Algorithm of the digest, which is reported in the log, in the response documents of split and "
        "store, and in the header `X-Upload-Digest` of forwarded responses. Files are stored with this digest in "
        "place of the SHA-256 that `store` reports without it. blake3 takes less than half the time of sha256; blake3 "
        "and crc32c need the packages of these names.",
    )


class Sniff(Section):
    """Allow only files whose first bytes are of an allowed type; name and Content-Type are ignored."""

    allow: tuple[str, ...] = config_key(
        min_length=1,
        description="Allowed media types, with `*` for any characters, for example image/*, application/pdf.",
    )


class Throttle(Section):
    """Limit the rate of uploads."""

    rate: Annotated[Rate, Check(_parse_positive)] = config_key(gt=0, description="Limit in bytes per second.")
    per: ThrottleScope = config_key(
        "route", description="Scope of the limit: all uploads of the route together, or those of each client address."
    )


class Compress(Section):
    """Compress files while they are streamed."""

    coding: Coding = config_key("gzip", description="Format: gzip (RFC 1952), or deflate, which is zlib (RFC 1950).")
    level: int = config_key(6, ge=1, le=9, description="Compression level, from 1 (fastest) to 9 (smallest).")


class Decompress(Section):
    """Decompress files while they are streamed; gzip and zlib are distinguished by their first bytes."""

    max_bytes: Size = config_key(
        10 * 2.0**30, description="Bytes of one file after decompression; protects against decompression bombs."
    )


class Scan(Section):
    """Send files to ClamAV's daemon while they are streamed, and cut an infected file before its last chunk."""

    clamd: Annotated[str, Check(_parse_clamd)] = config_key(
        description="Address of clamd: unix:/run/clamav/clamd.ctl, or host:port. clamd's StreamMaxLength (25 MB by "
        "default) limits the size of a file: raise it to the largest you accept."
    )
    timeout: Seconds = config_key(
        60.0, description="Limit for clamd to accept a chunk, and to respond at the file's end."
    )
    on_error: ScanErrorPolicy = config_key(
        "refuse", description="If clamd fails: refuse the file (503), or pass the file without a scan."
    )


class BuiltInFilters(Section):
    """One filter: a name with options, or only a name. A name that is not built in is that of a plug-in."""

    digest: Digest | None = config_key(None, description="Hash files and verify the digests that senders give.")
    sniff: Sniff | None = config_key(None, description="Allow files by their magic bytes; needs the extra `sniff`.")
    throttle: Throttle | None = config_key(None, description="Limit the rate of uploads.")
    scan: Scan | None = config_key(None, description="Scan files for malware with ClamAV.")
    compress: Compress | None = config_key(None, description="Compress files; forms are re-encoded.")
    decompress: Decompress | None = config_key(None, description="Decompress files; forms are re-encoded.")


@dataclass(frozen=True, slots=True)
class FilterChoice:
    """An entry of a route's `filters`."""

    name: str
    #: A section, or the unchecked YAML value for a plug-in.
    options: Any

    @classmethod
    def read(cls, value: Any, path: KeyPath, findings: Findings) -> FilterChoice | None:
        """Return the choice, see `Kind.read`; a name without options is one with empty options."""
        named = {value: None} if isinstance(value, str) else value
        if not isinstance(named, dict) or len(named) != 1:
            message = "a filter is one name with its options: write a new `- item` for each filter"
            findings.append((path, message))
            return None
        ((name, options),) = named.items()
        options = {} if options is None else options
        key = BuiltInFilters.keys.get(name)
        return cls(name, options if key is None else key.read(options, (*path, name), findings))

    def show(self) -> Any:
        """Return the choice for a JSON document."""
        return {self.name: self.options.show() if isinstance(self.options, Section) else self.options}

    @classmethod
    def schema(cls, definitions: Definitions) -> dict[str, Any]:
        """Return the JSON Schema: a name, or a mapping with one name."""
        entry = {"minProperties": 1, "maxProperties": 1, "additionalProperties": True}
        return {"anyOf": [{"type": "string"}, BuiltInFilters.define(definitions) | entry]}
