from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    SGD: _ClassVar[Kind]
    STATISTICS: _ClassVar[Kind]
    EVALUATE: _ClassVar[Kind]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    DONE: _ClassVar[Outcome]
    DECLINED: _ClassVar[Outcome]
    FAILED: _ClassVar[Outcome]
KIND_UNSPECIFIED: Kind
SGD: Kind
STATISTICS: Kind
EVALUATE: Kind
OUTCOME_UNSPECIFIED: Outcome
DONE: Outcome
DECLINED: Outcome
FAILED: Outcome

class Blob(_message.Message):
    __slots__ = ("sha256", "size", "data")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size: int
    data: bytes
    def __init__(self, sha256: _Optional[str] = ..., size: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class CheckInRequest(_message.Message):
    __slots__ = ("app", "formats", "abilities", "holdings", "ready", "wait_seconds", "problem")
    APP_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    ABILITIES_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    app: str
    formats: _containers.RepeatedScalarFieldContainer[str]
    abilities: _containers.RepeatedScalarFieldContainer[str]
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    ready: bool
    wait_seconds: int
    problem: str
    def __init__(self, app: _Optional[str] = ..., formats: _Optional[_Iterable[str]] = ..., abilities: _Optional[_Iterable[str]] = ..., holdings: _Optional[_Iterable[_Union[Holding, _Mapping[str, object]]]] = ..., ready: bool = ..., wait_seconds: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("description", "num_examples", "num_test_examples")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_TEST_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    description: str
    num_examples: int
    num_test_examples: int
    def __init__(self, description: _Optional[str] = ..., num_examples: _Optional[int] = ..., num_test_examples: _Optional[int] = ...) -> None: ...

class CheckInReply(_message.Message):
    __slots__ = ("later", "description", "task")
    LATER_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    later: Later
    description: Description
    task: Task
    def __init__(self, later: _Optional[_Union[Later, _Mapping[str, object]]] = ..., description: _Optional[_Union[Description, _Mapping[str, object]]] = ..., task: _Optional[_Union[Task, _Mapping[str, object]]] = ...) -> None: ...

class Later(_message.Message):
    __slots__ = ("min_seconds", "max_seconds")
    MIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    min_seconds: float
    max_seconds: float
    def __init__(self, min_seconds: _Optional[float] = ..., max_seconds: _Optional[float] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("id", "run", "name", "classes", "test_fraction", "seed", "max_examples", "private", "fingerprint", "client", "backbones")
    ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TEST_FRACTION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    BACKBONES_FIELD_NUMBER: _ClassVar[int]
    id: str
    run: str
    name: str
    classes: _containers.RepeatedScalarFieldContainer[str]
    test_fraction: float
    seed: int
    max_examples: int
    private: bool
    fingerprint: str
    client: int
    backbones: _containers.RepeatedCompositeFieldContainer[Backbone]
    def __init__(self, id: _Optional[str] = ..., run: _Optional[str] = ..., name: _Optional[str] = ..., classes: _Optional[_Iterable[str]] = ..., test_fraction: _Optional[float] = ..., seed: _Optional[int] = ..., max_examples: _Optional[int] = ..., private: bool = ..., fingerprint: _Optional[str] = ..., client: _Optional[int] = ..., backbones: _Optional[_Iterable[_Union[Backbone, _Mapping[str, object]]]] = ...) -> None: ...

class Backbone(_message.Message):
    __slots__ = ("format", "file", "statement", "signature")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    format: str
    file: Blob
    statement: bytes
    signature: bytes
    def __init__(self, format: _Optional[str] = ..., file: _Optional[_Union[Blob, _Mapping[str, object]]] = ..., statement: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "run", "round", "description", "fingerprint", "seconds_left", "kind", "num_examples", "num_classes", "num_features", "fields", "head", "correction", "preconditioner", "training", "codec", "codec_seed", "clip", "unit_norm", "max_norm")
    ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    NUM_FEATURES_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    PRECONDITIONER_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    CODEC_SEED_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    UNIT_NORM_FIELD_NUMBER: _ClassVar[int]
    MAX_NORM_FIELD_NUMBER: _ClassVar[int]
    id: str
    run: str
    round: int
    description: str
    fingerprint: str
    seconds_left: float
    kind: Kind
    num_examples: int
    num_classes: int
    num_features: int
    fields: _containers.RepeatedScalarFieldContainer[str]
    head: Blob
    correction: Blob
    preconditioner: Blob
    training: Training
    codec: str
    codec_seed: int
    clip: float
    unit_norm: float
    max_norm: float
    def __init__(self, id: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., description: _Optional[str] = ..., fingerprint: _Optional[str] = ..., seconds_left: _Optional[float] = ..., kind: _Optional[_Union[Kind, str]] = ..., num_examples: _Optional[int] = ..., num_classes: _Optional[int] = ..., num_features: _Optional[int] = ..., fields: _Optional[_Iterable[str]] = ..., head: _Optional[_Union[Blob, _Mapping[str, object]]] = ..., correction: _Optional[_Union[Blob, _Mapping[str, object]]] = ..., preconditioner: _Optional[_Union[Blob, _Mapping[str, object]]] = ..., training: _Optional[_Union[Training, _Mapping[str, object]]] = ..., codec: _Optional[str] = ..., codec_seed: _Optional[int] = ..., clip: _Optional[float] = ..., unit_norm: _Optional[float] = ..., max_norm: _Optional[float] = ...) -> None: ...

class Training(_message.Message):
    __slots__ = ("optimizer", "lr", "epochs", "batch_size", "batch_seed", "momentum", "weight_decay", "mu")
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SEED_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MU_FIELD_NUMBER: _ClassVar[int]
    optimizer: str
    lr: float
    epochs: int
    batch_size: int
    batch_seed: int
    momentum: float
    weight_decay: float
    mu: float
    def __init__(self, optimizer: _Optional[str] = ..., lr: _Optional[float] = ..., epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., batch_seed: _Optional[int] = ..., momentum: _Optional[float] = ..., weight_decay: _Optional[float] = ..., mu: _Optional[float] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    offset: int
    def __init__(self, sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("task", "sha256", "size", "offset", "data")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    task: str
    sha256: str
    size: int
    offset: int
    data: bytes
    def __init__(self, task: _Optional[str] = ..., sha256: _Optional[str] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("task", "fingerprint", "outcome", "reason", "num_examples", "loss_before", "loss_after", "correct", "losses", "arrays", "fetch_seconds", "train_seconds", "upload_seconds")
    TASK_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LOSS_AFTER_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    FETCH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    task: str
    fingerprint: str
    outcome: Outcome
    reason: str
    num_examples: int
    loss_before: float
    loss_after: float
    correct: int
    losses: bytes
    arrays: _containers.RepeatedCompositeFieldContainer[Array]
    fetch_seconds: float
    train_seconds: float
    upload_seconds: float
    def __init__(self, task: _Optional[str] = ..., fingerprint: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., reason: _Optional[str] = ..., num_examples: _Optional[int] = ..., loss_before: _Optional[float] = ..., loss_after: _Optional[float] = ..., correct: _Optional[int] = ..., losses: _Optional[bytes] = ..., arrays: _Optional[_Iterable[_Union[Array, _Mapping[str, object]]]] = ..., fetch_seconds: _Optional[float] = ..., train_seconds: _Optional[float] = ..., upload_seconds: _Optional[float] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("field", "data", "sha256")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    field: str
    data: bytes
    sha256: str
    def __init__(self, field: _Optional[str] = ..., data: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("what", "reason", "later")
    class What(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WHAT_UNSPECIFIED: _ClassVar[Verdict.What]
        ACCEPTED: _ClassVar[Verdict.What]
        LATE: _ClassVar[Verdict.What]
        REFUSED: _ClassVar[Verdict.What]
        NOTED: _ClassVar[Verdict.What]
    WHAT_UNSPECIFIED: Verdict.What
    ACCEPTED: Verdict.What
    LATE: Verdict.What
    REFUSED: Verdict.What
    NOTED: Verdict.What
    WHAT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LATER_FIELD_NUMBER: _ClassVar[int]
    what: Verdict.What
    reason: str
    later: Later
    def __init__(self, what: _Optional[_Union[Verdict.What, str]] = ..., reason: _Optional[str] = ..., later: _Optional[_Union[Later, _Mapping[str, object]]] = ...) -> None: ...

class LatestRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "file", "card", "statement", "signature")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    file: Blob
    card: Blob
    statement: bytes
    signature: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., file: _Optional[_Union[Blob, _Mapping[str, object]]] = ..., card: _Optional[_Union[Blob, _Mapping[str, object]]] = ..., statement: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...
