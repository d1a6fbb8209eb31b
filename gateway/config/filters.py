"""The options of the built-in filters, and how a filter is named in a route."""

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
        raise ValueError("nothing would ever flow: write a rate like 5MB/s")
    return value


def _parse_clamd(value: str) -> str:
    if not value.startswith("unix:/"):
        try:
            parse_address(value)
        except ValueError:
            raise ValueError(f"{value!r} is no place of clamd: write unix:/run/clamav/clamd.ctl or host:port") from None
    return value


class Digest(Section):
    """Hash every file, tell the digest, and hold files to what their sender says of them (RFC 9530)."""

    algorithm: Literal["sha256", "sha512", "sha1", "md5", "crc32c", "blake2b"] = Field(
        "sha256", description="Told in the log, in documents, and as `X-Upload-Digest` on forwarded answers."
    )


class Sniff(Section):
    """Take only files whose first bytes are of an allowed type, whatever they are called."""

    allow: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Media types, with `*` for any characters: image/*, application/pdf."
    )


class Throttle(Section):
    """Let files flow at a rate."""

    rate: Annotated[Rate, AfterValidator(_parse_positive)] = Field(description="Bytes per second.")
    per: ThrottleScope = Field("route", description="Who shares it: everybody, or each client address.")


class Compress(Section):
    """Compress files on their way."""

    coding: Coding = Field("gzip", description="How.")
    level: int = Field(6, ge=1, le=9, description="From fast (1) to small (9).")


class Decompress(Section):
    """Decompress files on their way; gzip and zlib are told apart by their first bytes."""

    max_bytes: Size = Field(10 * 2.0**30, description="Of one file, decompressed: bombs end here.")


class Scan(Section):
    """Show files to ClamAV's daemon as they pass, and cut what it finds before its end."""

    clamd: Annotated[str, AfterValidator(_parse_clamd)] = Field(
        description="Where clamd listens: unix:/run/clamav/clamd.ctl, or host:port. Its StreamMaxLength bounds files."
    )
    timeout: Seconds = Field(60.0, description="For each answer of it, and for taking a chunk.")
    on_error: ScanErrorPolicy = Field(
        "refuse", description="When it cannot be asked: refuse the file (503), or let it pass unscanned."
    )


class FilterChoice(Section):
    """One filter: its name with its options, or its name alone. Names not known here are those of plug-ins."""

    model_config = ConfigDict(frozen=True, extra="allow")

    digest: Digest | None = Field(None, description="Hash, and check what senders say.")
    sniff: Sniff | None = Field(None, description="Allow types by magic bytes; needs the extra `sniff`.")
    throttle: Throttle | None = Field(None, description="Hold a rate.")
    scan: Scan | None = Field(None, description="Ask ClamAV.")
    compress: Compress | None = Field(None, description="Compress; forms are made anew.")
    decompress: Decompress | None = Field(None, description="Decompress; forms are made anew.")

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        """Take a name alone for a name with no options."""
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            return {name: {} if options is None else options for name, options in value.items()}
        return value

    @model_validator(mode="after")
    def _is_one(self) -> FilterChoice:
        if len(self.model_fields_set) != 1:
            raise ValueError("a filter is one name with its options: begin a new `- item` for each")
        return self

    @property
    def name(self) -> str:
        """Its name."""
        return next(iter(self.model_fields_set))

    @property
    def options(self) -> Any:
        """Its options: a section, or what stands there for a plug-in."""
        return getattr(self, self.name)
