from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class QuantizeRequest(_message.Message):
    __slots__ = ("model_path", "model_name", "output_path", "scheme")
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    model_name: str
    output_path: str
    scheme: QuantizationScheme
    def __init__(self, model_path: _Optional[str] = ..., model_name: _Optional[str] = ..., output_path: _Optional[str] = ..., scheme: _Optional[_Union[QuantizationScheme, _Mapping]] = ...) -> None: ...

class QuantizationScheme(_message.Message):
    __slots__ = ("mode", "bits", "group_size", "recipe")
    MODE_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    mode: str
    bits: int
    group_size: int
    recipe: str
    def __init__(self, mode: _Optional[str] = ..., bits: _Optional[int] = ..., group_size: _Optional[int] = ..., recipe: _Optional[str] = ...) -> None: ...

class QuantizeProgress(_message.Message):
    __slots__ = ("bytes_done", "bytes_total", "file")
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    bytes_done: int
    bytes_total: int
    file: str
    def __init__(self, bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., file: _Optional[str] = ...) -> None: ...

class ImportAdapterRequest(_message.Message):
    __slots__ = ("model_path", "model_name", "adapter_path", "output_path")
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_PATH_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    model_path: str
    model_name: str
    adapter_path: str
    output_path: str
    def __init__(self, model_path: _Optional[str] = ..., model_name: _Optional[str] = ..., adapter_path: _Optional[str] = ..., output_path: _Optional[str] = ...) -> None: ...

class ImportAdapterResponse(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, files: _Optional[_Iterable[str]] = ...) -> None: ...
