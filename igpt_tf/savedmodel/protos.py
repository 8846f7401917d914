"""The parts of a SavedModel's and a warm-up file's protocol buffers that are read, declared anew.

TensorFlow ships these messages as Python modules, but importing one imports all of TensorFlow.
Their numbers are fixed for good (TensorFlow promises compatibility of SavedModels), and the wire
format skips what is not declared, so a few lines do. The pool is an own one: in a program that
imports TensorFlow too, both declarations live side by side.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Message: its fields as (name, number, type); "*" marks repeated ones. A map is sent as repeated
# entries. Source: tensorflow/core/protobuf/meta_graph.proto, tensorflow/core/framework/*.proto,
# tensorflow_serving/apis/{prediction_log,predict,model,get_model_metadata}.proto.
_MESSAGES = {
    "MetaGraphDef": (("graph_def", 2, "GraphDef"), ("signature_def", 5, "*SignatureEntry")),
    "SignatureDefMap": (("signature_def", 1, "*SignatureEntry"),),
    "SignatureEntry": (("key", 1, "string"), ("value", 2, "SignatureDef")),
    "SignatureDef": (
        ("inputs", 1, "*TensorEntry"),
        ("outputs", 2, "*TensorEntry"),
        ("method_name", 3, "string"),
    ),
    "TensorEntry": (("key", 1, "string"), ("value", 2, "TensorInfo")),
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
    "OpDef": (("name", 1, "string"),),
    "NodeDef": (("name", 1, "string"), ("op", 2, "string"), ("attr", 5, "*AttrEntry")),
    "AttrEntry": (("key", 1, "string"), ("value", 2, "AttrValue")),
    "AttrValue": (("b", 5, "bool"),),
    "PredictionLog": (("predict_log", 6, "PredictLog"),),
    "PredictLog": (("request", 1, "PredictRequest"),),
    "PredictRequest": (("model_spec", 1, "ModelSpec"), ("inputs", 2, "*InputEntry")),
    "ModelSpec": (("signature_name", 3, "string"),),
    "InputEntry": (("key", 1, "string"), ("value", 2, "TensorProto")),
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
_PACKAGE = "igpt_tf.serving"
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
        name="igpt_tf/serving/saved_model.proto", package=_PACKAGE, syntax="proto3"
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
PredictionLog = _class_of("PredictionLog")
SignatureDefMap = _class_of("SignatureDefMap")
