"""The protocol buffers of SavedModels and warm-up files, reduced to what this package uses.

TensorFlow ships these messages as Python modules, but importing one imports all of TensorFlow, and
those of the warm-up file need tensorflow-serving-api. Field numbers never change (TensorFlow keeps
SavedModels compatible), and undeclared fields are skipped, so declaring the used fields suffices.
A descriptor pool of its own keeps them apart from TensorFlow's declarations.
"""

import math
from typing import NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from igpt_tf.savedmodel.spec import Signature, TensorSpec

# TensorFlow's numbers of types. Source: tensorflow/core/framework/types.proto.
TYPES = {1: "float32", 3: "int32", 4: "uint8", 7: "string", 9: "int64", 10: "bool"}

# Message: its fields as (name, number, type); "*" marks repeated fields. A map is encoded as
# repeated entries. Source: tensorflow/core/protobuf/{saved_model,meta_graph}.proto,
# tensorflow/core/framework/*.proto,
# tensorflow_serving/apis/{prediction_log,predict,model,get_model_metadata}.proto.
_MESSAGES = {
    "SavedModel": (("meta_graphs", 2, "*MetaGraphDef"),),
    "MetaGraphDef": (("graph_def", 2, "GraphDef"), ("signature_def", 5, "*SignatureEntry")),
    "SignatureDefMap": (("signature_def", 1, "*SignatureEntry"),),
    "SignatureEntry": (("key", 1, "string"), ("value", 2, "SignatureDef")),
    "SignatureDef": (
        ("inputs", 1, "*TensorInfoEntry"),
        ("outputs", 2, "*TensorInfoEntry"),
        ("defaults", 4, "*TensorEntry"),
    ),
    "TensorInfoEntry": (("key", 1, "string"), ("value", 2, "TensorInfo")),
    "TensorInfo": (
        ("name", 1, "string"),
        ("dtype", 2, "int64"),
        ("tensor_shape", 3, "TensorShapeProto"),
    ),
    "TensorShapeProto": (("dim", 2, "*Dim"), ("unknown_rank", 3, "bool")),
    "Dim": (("size", 1, "int64"),),
    "GraphDef": (("node", 1, "*NodeDef"), ("library", 2, "FunctionDefLibrary")),
    "FunctionDefLibrary": (("function", 1, "*FunctionDef"),),
    "FunctionDef": (
        ("signature", 1, "OpDef"),
        ("node_def", 3, "*NodeDef"),
        ("attr", 5, "*AttrEntry"),
    ),
    "OpList": (("op", 1, "*OpDef"),),
    "OpDef": (("name", 1, "string"), ("is_stateful", 17, "bool")),
    "NodeDef": (
        ("name", 1, "string"),
        ("op", 2, "string"),
        ("input", 3, "*string"),
        ("attr", 5, "*AttrEntry"),
    ),
    "AttrEntry": (("key", 1, "string"), ("value", 2, "AttrValue")),
    "AttrValue": (("list", 1, "AttrList"), ("b", 5, "bool"), ("func", 10, "FunctionName")),
    "AttrList": (("func", 9, "*FunctionName"),),
    "FunctionName": (("name", 1, "string"),),
    "PredictionLog": (("predict_log", 6, "PredictLog"),),
    "PredictLog": (("request", 1, "PredictRequest"),),
    "PredictRequest": (("model_spec", 1, "ModelSpec"), ("inputs", 2, "*TensorEntry")),
    "ModelSpec": (("signature_name", 3, "string"),),
    "TensorEntry": (("key", 1, "string"), ("value", 2, "TensorProto")),
    "TensorProto": (
        ("dtype", 1, "int64"),
        ("tensor_shape", 2, "TensorShapeProto"),
        ("tensor_content", 4, "bytes"),
        ("float_val", 5, "*float"),
        ("int_val", 7, "*int64"),
        ("string_val", 8, "*bytes"),
        ("int64_val", 10, "*int64"),
        ("bool_val", 11, "*bool"),
    ),
}
_PACKAGE = "igpt_tf.savedmodel"
_VALUES = ("float_val", "int_val", "string_val", "int64_val", "bool_val")
_MAX_ELEMENTS = 2**28  # of a tensor that is read
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL,
    "bytes": _FIELD.TYPE_BYTES,
    "float": _FIELD.TYPE_FLOAT,
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
}


def _field(name: str, number: int, kind: str) -> _FIELD:
    repeated, kind = kind.startswith("*"), kind.removeprefix("*")
    field = _FIELD(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if repeated:
        field.label = _FIELD.LABEL_REPEATED
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    return field


def _declare() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="igpt_tf/savedmodel.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        file.message_type.add(name=name, field=[_field(*field) for field in fields])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _class_of(name: str) -> type:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_POOL = _declare()
MetaGraphDef = _class_of("MetaGraphDef")
OpList = _class_of("OpList")
PredictionLog = _class_of("PredictionLog")
SavedModel = _class_of("SavedModel")
SignatureDefMap = _class_of("SignatureDefMap")


class TensorNames(NamedTuple):
    """Names of a signature's tensors in the graph, e.g. {"images": "features_images:0"}."""

    inputs: dict[str, str]
    outputs: dict[str, str]


def read_signatures(message) -> dict[str, Signature]:
    """Signatures of a `MetaGraphDef` or `SignatureDefMap`, without TensorFlow's internal ones.

    Sizes of any value are None, and so are the axes of tensors of unknown rank.
    """
    return {
        name: Signature(
            name=name,
            description="",
            inputs=_tensor_specs(entry.inputs, optional={tensor.key for tensor in entry.defaults}),
            outputs=_tensor_specs(entry.outputs),
        )
        for name, entry in _entries(message)
    }


def read_tensor_names(message) -> dict[str, TensorNames]:
    """Signature name -> names of its tensors."""
    return {
        name: TensorNames(
            {tensor.key: tensor.value.name for tensor in entry.inputs},
            {tensor.key: tensor.value.name for tensor in entry.outputs},
        )
        for name, entry in _entries(message)
    }


def _entries(message) -> list:
    entries = sorted(message.signature_def, key=lambda entry: entry.key)
    return [(entry.key, entry.value) for entry in entries if not entry.key.startswith("__")]


def _tensor_specs(entries, optional=()) -> dict[str, TensorSpec]:
    return {
        entry.key: TensorSpec(
            TYPES.get(entry.value.dtype, f"type {entry.value.dtype}"),
            _axes(entry.value.tensor_shape),
            optional=entry.key in optional,
        )
        for entry in sorted(entries, key=lambda entry: entry.key)
    }


def _axes(shape) -> tuple[int | None, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in shape.dim)


def set_tensor(proto, array: np.ndarray) -> None:
    """Fills a `TensorProto` from an array; strings are arrays of objects."""
    numbers = {name: number for number, name in TYPES.items()}
    proto.dtype = numbers["string" if array.dtype == object else array.dtype.name]
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        proto.string_val.extend(array.flat)
    else:
        proto.tensor_content = array.tobytes()


def read_tensor(proto) -> np.ndarray:
    """Array of a `TensorProto`. Its last value stands for all that are left out.

    Raises:
        ValueError, KeyError: The message is damaged.
    """
    name = TYPES[proto.dtype]
    dtype = object if name == "string" else name
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {shape}")
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = next((list(found) for found in (getattr(proto, f) for f in _VALUES) if found), [0])
    array = np.empty(shape, dtype)
    count = array.size
    array.flat = values[:count] + values[-1:] * (count - len(values))
    return array
