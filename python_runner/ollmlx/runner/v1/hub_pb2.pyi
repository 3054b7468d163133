from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InspectRequest(_message.Message):
    __slots__ = ("repository", "revision")
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    repository: str
    revision: str
    def __init__(self, repository: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class Repository(_message.Message):
    __slots__ = ("repository", "commit", "files", "license", "license_link", "from_cache", "from_cache_reason", "token", "endpoint")
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    LICENSE_LINK_FIELD_NUMBER: _ClassVar[int]
    FROM_CACHE_FIELD_NUMBER: _ClassVar[int]
    FROM_CACHE_REASON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    repository: str
    commit: str
    files: _containers.RepeatedCompositeFieldContainer[HubFile]
    license: str
    license_link: str
    from_cache: bool
    from_cache_reason: str
    token: str
    endpoint: str
    def __init__(self, repository: _Optional[str] = ..., commit: _Optional[str] = ..., files: _Optional[_Iterable[_Union[HubFile, _Mapping]]] = ..., license: _Optional[str] = ..., license_link: _Optional[str] = ..., from_cache: bool = ..., from_cache_reason: _Optional[str] = ..., token: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class HubFile(_message.Message):
    __slots__ = ("path", "size", "sha256", "git_sha1", "url", "cache_path")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    GIT_SHA1_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    CACHE_PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    sha256: str
    git_sha1: str
    url: str
    cache_path: str
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ..., git_sha1: _Optional[str] = ..., url: _Optional[str] = ..., cache_path: _Optional[str] = ...) -> None: ...

class SupportsRequest(_message.Message):
    __slots__ = ("model_type", "architectures")
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURES_FIELD_NUMBER: _ClassVar[int]
    model_type: str
    architectures: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model_type: _Optional[str] = ..., architectures: _Optional[_Iterable[str]] = ...) -> None: ...

class SupportsResponse(_message.Message):
    __slots__ = ("supported", "engine")
    SUPPORTED_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    supported: bool
    engine: str
    def __init__(self, supported: bool = ..., engine: _Optional[str] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("query", "limit", "mlx")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MLX_FIELD_NUMBER: _ClassVar[int]
    query: str
    limit: int
    mlx: bool
    def __init__(self, query: _Optional[str] = ..., limit: _Optional[int] = ..., mlx: bool = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[HubModel]
    def __init__(self, models: _Optional[_Iterable[_Union[HubModel, _Mapping]]] = ...) -> None: ...

class HubModel(_message.Message):
    __slots__ = ("repository", "downloads", "likes", "last_modified", "gated")
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    DOWNLOADS_FIELD_NUMBER: _ClassVar[int]
    LIKES_FIELD_NUMBER: _ClassVar[int]
    LAST_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    GATED_FIELD_NUMBER: _ClassVar[int]
    repository: str
    downloads: int
    likes: int
    last_modified: int
    gated: bool
    def __init__(self, repository: _Optional[str] = ..., downloads: _Optional[int] = ..., likes: _Optional[int] = ..., last_modified: _Optional[int] = ..., gated: bool = ...) -> None: ...

class WhoAmIRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoginRequest(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class Account(_message.Message):
    __slots__ = ("name", "full_name", "organizations", "endpoint", "from_environment")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FULL_NAME_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATIONS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    FROM_ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    full_name: str
    organizations: _containers.RepeatedScalarFieldContainer[str]
    endpoint: str
    from_environment: bool
    def __init__(self, name: _Optional[str] = ..., full_name: _Optional[str] = ..., organizations: _Optional[_Iterable[str]] = ..., endpoint: _Optional[str] = ..., from_environment: bool = ...) -> None: ...

class LogoutRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LogoutResponse(_message.Message):
    __slots__ = ("from_environment",)
    FROM_ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    from_environment: bool
    def __init__(self, from_environment: bool = ...) -> None: ...
