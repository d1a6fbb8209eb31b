"""The keys of the actions, which are what a route does with a request. The keys of a route itself are in `model`."""

from __future__ import annotations

from typing import Literal

from gateway.config.section import HeaderName, S3Url, Section, UrlPath, config_key
from gateway.config.upstream import UpstreamTimeouts
from gateway.config.values import Percent, Seconds, Size

HostMode = Literal["preserve", "upstream"]
IfExists = Literal["rename", "reject", "replace"]
Naming = Literal["original", "uuid"]
FileBody = Literal["multipart", "raw"]

_MIB = float(2**20)


class FormFields(Section):
    """Which form fields are sent upstream with a file, under which names, and where in the request."""

    keep: tuple[str, ...] | None = config_key(
        None, description="Names of the form fields sent upstream; all others are removed. Default: all."
    )
    drop: tuple[str, ...] = config_key((), description="Names of form fields that are removed.")
    rename: dict[str, str] = config_key({}, description="New names of form fields, as OLD: NEW.")
    add: dict[str, str] = config_key(
        {}, description="Form fields added to every request, as NAME: VALUE; they replace the client's of that name."
    )
    send: Literal["form", "query", "headers", "none"] | None = config_key(
        None,
        description="Where the form fields are put: parts of the form, the query, headers `X-Form-NAME`, or nowhere. "
        "Default: form for `body: multipart`, query for `body: raw`.",
    )


class Mirror(Section):
    """Send a copy of some requests to a second upstream or a directory. The primary exchange never waits for it."""

    upstream: str | None = config_key(
        None, description="Name of the upstream that receives the copies; its responses are discarded."
    )
    directory: str | None = config_key(
        None,
        description="Directory in which each mirrored body is written to a file, completely or not at all; in place of "
        "`upstream`.",
    )
    percent: Percent = config_key(1.0, description="Percentage of the requests that are mirrored, chosen at random.")
    buffer: Size = config_key(
        4 * _MIB,
        description="Bytes held per request while the mirror is slower than the primary; a mirror that needs more is "
        "cut.",
    )


class Forward(Section):
    """Stream the request to an upstream and its response back."""

    upstream: str = config_key(description="Name of the upstream.")
    rewrite: UrlPath | None = config_key(
        None,
        description="Path sent upstream: it replaces `match.path` or `match.prefix`; with `match.regex` it is a "
        "template with groups (\\1). Default: the path as received.",
    )
    multipart: Literal["inspect", "opaque", "strict"] = config_key(
        "inspect",
        description="How multipart/form-data is treated. `inspect`: parse it, enforce the limits, send it byte for "
        "byte. `opaque`: send it without parsing. `strict`: also refuse what parsers interpret in different ways, and "
        "send a new canonical form with its own boundary.",
    )
    body: Literal["as_is", "raw", "multipart"] = config_key(
        "as_is",
        description="Shape of the body sent upstream. `as_is`: as received. `raw`: the bytes of the form's one file. "
        "`multipart`: a raw body becomes the file of a form.",
    )
    file_field: str = config_key(
        "file", description="With `body: multipart`, the name of the form field that contains a raw body."
    )
    filename_header: HeaderName | None = config_key(
        "X-File-Name",
        description="With `body: raw`, the header with the file's name, in percent-encoded UTF-8; null sends none.",
    )
    form_fields: FormFields = config_key(
        FormFields(),
        description="Which form fields are sent upstream; with `body: raw` only those before the file can be sent.",
    )
    mirror: Mirror | None = config_key(
        None, description="Send a copy of some requests to a second upstream or a directory. Default: no mirror."
    )
    host: HostMode = config_key(
        "preserve", description="Host header sent upstream: the client's with its port, or the endpoint's."
    )


class Split(Section):
    """Send every file of a form in its own upstream request, and respond with one document of all responses."""

    upstream: str = config_key(description="Name of the upstream; the files are distributed over its endpoints.")
    rewrite: UrlPath | None = config_key(
        None, description="Path sent upstream, as in forward; `{filename}` in it is the file's name, percent-encoded."
    )
    body: FileBody = config_key(
        "multipart",
        description="Body of each upstream request: a form with the one file, or the file's bytes with its "
        "Content-Type.",
    )
    filename_header: HeaderName | None = config_key(
        "X-File-Name",
        description="With `body: raw`, the header with the file's name, in percent-encoded UTF-8; null sends none.",
    )
    form_fields: FormFields = config_key(
        FormFields(), description="Which of the form fields before a file are sent upstream with it."
    )
    host: HostMode = config_key(
        "preserve", description="Host header sent upstream: the client's with its port, or the endpoint's."
    )
    max_parallel: int = config_key(
        4,
        ge=1,
        description="Upstream requests of one form at the same time; the next file is not read before one ends.",
    )
    on_error: Literal["continue", "stop"] = config_key(
        "continue", description="After the request of a file failed: send the next file, or send no more."
    )
    max_response_bytes: Size = config_key(
        _MIB,
        description="Bytes of all upstream responses to one form together. They are held in memory until the last "
        "response, since any failure changes the status from 200 to 207.",
    )


class Store(Section):
    """Stream every file of an upload to a directory or a bucket, completely or not at all."""

    directory: str | None = config_key(
        None,
        description="Directory for the files; a relative path starts at the working directory. Unfinished files are in "
        "hidden `.HEX.part` directories inside it; the next start removes those of a gateway that was killed.",
    )
    url: S3Url | None = config_key(
        None,
        description="Bucket and prefix for the files, s3://bucket/prefix, in place of `directory`; needs the extra "
        "`s3`. Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...).",
    )
    endpoint: str | None = config_key(
        None, description="URL of an object store other than AWS, http(s)://host:port. Default: AWS."
    )
    region: str | None = config_key(None, description="Region of the bucket. Default: from the environment.")
    name: Naming = config_key(
        "original",
        description="Name of a stored file: the client's file name with unsafe characters replaced, or a random UUID "
        "with its extension.",
    )
    if_exists: IfExists = config_key(
        "rename",
        description="If a file with this name exists: store under a numbered name (name-1), respond 409, or replace it "
        "atomically. With `replace`, two files of one name in one form are refused (409), and so is a name that a "
        "directory has; a replaced file of more than 4 MiB is freed after the response, so that the client does not "
        "wait for that.",
    )
    sync_timeout: Seconds = config_key(
        300.0,
        description="Limit for writing a whole file out to the disk at its end, and for giving the files of an upload "
        "their names; every other call to the disk has `timeouts.idle`. Longer, since a slow disk may need minutes for "
        "what it still holds in memory. After it the client gets 503 (`disk_slow`).",
    )


class Files(Section):
    """Stream files of a directory or a bucket to the client, ranges and conditional requests included."""

    directory: str | None = config_key(
        None,
        description="Directory that is served. Files whose path contains a name with a leading dot, and symlinks that "
        "lead out of the directory, are not served.",
    )
    url: S3Url | None = config_key(
        None,
        description="Bucket and prefix that are served, s3://bucket/prefix, in place of `directory`; needs the extra "
        "`s3`.",
    )
    endpoint: str | None = config_key(
        None, description="URL of an object store other than AWS, http(s)://host:port. Default: AWS."
    )
    region: str | None = config_key(None, description="Region of the bucket. Default: from the environment.")


class Fetch(Section):
    """Stream an allowed URL to the client: /fetch/https://models.example/a.bin."""

    allow: tuple[str, ...] = config_key(
        min_length=1,
        description="URL prefixes (scheme, host, port, path) that are allowed; the targets of redirects must match "
        "too.",
    )
    private_networks: Literal["deny", "allow"] = config_key(
        "deny",
        description="Whether connections to addresses that are not public are allowed. Each address of a name is "
        "checked, again when the connection is opened, so that a DNS name cannot bypass it.",
    )
    timeouts: UpstreamTimeouts = config_key(
        UpstreamTimeouts(), description="Time limits for each step of a request to the URL."
    )
